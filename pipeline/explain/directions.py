"""Does the model not see the harm, or does it see it and not decline?

Two directions in the hidden states at the last token of the prompt, fitted on training prompts: harmfulness (harmful
minus harmless requests) and refusal (requests that the model declined minus those that it answered, within each pool).
In larger models the two differ (Zhao et al. 2025, arXiv 2507.11878).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from pipeline.core.errors import NotMeasuredError
from pipeline.core.log import say
from pipeline.core.settings import Settings
from pipeline.core.stage import Cost, Prepared
from pipeline.engines.local import batch_limits
from pipeline.evals.judges.refusal import NAME, judge_reply
from pipeline.evals.knows_does import NUM_LAYERS
from pipeline.evals.probe import MIN_PROMPTS, refuse_too_few, training_prompts
from pipeline.evals.results import DIRECT
from pipeline.explain.base import Material, Question
from pipeline.explain.costs import direct_cases, tokens_per_case
from pipeline.explain.directions_ablated import ABLATED, ablation, asked_again
from pipeline.explain.directions_fit import Fit, fit
from pipeline.explain.directions_found import Ablation, DirectionsFindings, LayerAuc
from pipeline.records import POOLS, Case, Prompt

if TYPE_CHECKING:
    from pipeline.engines.states import Reader
    from pipeline.explain.directions_measured import Declined, Read


__all__ = ["Directions", "DirectionsConfig", "DirectionsFindings"]


class DirectionsConfig(Settings):
    """Harmfulness and refusal as directions in the hidden states, and what the model does without the second one."""

    enabled: bool = True
    """Answer this question. It loads the models with transformers, whatever the policy engine is."""
    num_prompts: int = Field(default=50, ge=MIN_PROMPTS)
    """How many training prompts of each pool the directions are fitted on, at most."""
    num_ablated: int = Field(default=20, ge=0)
    """How many harmful and how many ordinary requests are answered without the refusal direction; 0: none."""
    max_reply_tokens: int = Field(default=20, ge=1)
    """The most tokens of a reply to a training prompt and of one without the direction: enough to see a refusal."""


class Directions(Question):
    """Does the model not see the harm, or does it see it and not decline?"""

    name = "directions"

    def reads(self, config: DirectionsConfig) -> dict[str, str]:
        return {"judge": NAME}

    def cost(self, config: DirectionsConfig, prepared: Prepared) -> Cost:
        """Transformers read and write it, whatever the policy engine is."""
        cases = direct_cases(prepared)
        num_learned, num_ablated = len(POOLS) * config.num_prompts, len(ABLATED) * config.num_ablated
        num_replies = num_learned + 3 * num_ablated
        num_read = 2 * (num_learned + len(cases)) + num_replies
        return Cost(
            num_calls=num_replies,
            num_tokens_written=num_replies * config.max_reply_tokens,
            num_tokens_read=num_read * tokens_per_case(cases),
        )

    def answer(self, config: DirectionsConfig, material: Material) -> DirectionsFindings:
        from pipeline.explain import directions_measured as measured

        cases = measured.evaluated(material.verdicts.get(material.last, []))
        direct = [case for case in cases if case.attack == DIRECT]
        refuse_one_class(direct)
        learned = training_prompts(material.prompts, [case.prompt for case in cases], config.num_prompts, material.seed)
        refuse_too_few(learned)
        aucs: list[LayerAuc] = []
        first: tuple[Read, Fit] | None = None
        if material.first != material.last:
            read = _read(material.first, material, learned, direct)[0]  # the next model needs the room of this one
            harm = fit(read.harmful, material.seed)
            aucs += measured.layer_aucs(material.first, read, harm, material.confidence)
            first = (read, harm)
        read, reader = _read(material.last, material, learned, cases)
        harm = fit(read.harmful, material.seed)
        aucs += measured.layer_aucs(material.last, read, harm, material.confidence)
        declined, refusal = None, None
        try:
            declined = _declined(reader, read, config)
            refusal = declined.fit_refusal(read, material.seed)
        except NotMeasuredError as reason:
            material.notes.append(f"There is no refusal direction of {material.last}: {reason}.")
        found = measured.points(read, harm, refusal, material.verdicts[material.last])
        return DirectionsFindings(
            num_layers=read.num_layers,
            layer=read.layers[harm.best],
            refusal_layer=read.layers[refusal.best] if refusal else None,
            num_learned={pool: sum(prompt.pool == pool for prompt in read.learned) for pool in POOLS},
            num_declined=declined.num_declined if declined else 0,
            num_answered=declined.num_answered if declined else 0,
            num_left_out=len(cases) - len(read.asked),
            layer_aucs=aucs,
            cosines=measured.cosines(
                read, harm, first, (declined, refusal) if declined and refusal else None, material.seed
            ),
            threshold=harm.threshold,
            false_alarms=measured.false_alarms(found, harm.threshold, material.confidence),
            seen=measured.seen(found, harm.threshold, material.confidence),
            families=measured.families(found, material.confidence),
            points=found,
            ablation=_ablation(config, material, reader, read.asked, refusal),
        )


def refuse_one_class(cases: Sequence[Case]) -> None:
    """Raise NotMeasuredError unless there are harmful requests and look-alikes among the cases."""
    for pool in ("red_team", "look_alike"):
        if not any(case.prompt.pool == pool for case in cases):
            raise NotMeasuredError(f"no request of the pool {pool} was evaluated")


def _read(model: str, material: Material, learned: Sequence[Prompt], cases: Sequence[Case]) -> tuple[Read, Reader]:
    """Load a model, and read its states."""
    from pipeline.engines.states import load_reader
    from pipeline.explain.directions_measured import Read

    say(f"explain: states of {model} for {len(learned)} training prompts and {len(cases)} requests")
    with material.context.meter.running():
        reader = load_reader(material.weights(model), batch_limits(material.context.launch)[0])
        dialogues = [*(prompt.messages for prompt in learned), *(case.messages for case in cases)]
        read = Read.of(reader.states(dialogues, NUM_LAYERS), learned, cases)
    refuse_too_few(read.learned)
    refuse_one_class(read.asked)
    return read, reader


def _declined(reader: Reader, read: Read, config: DirectionsConfig) -> Declined:
    from pipeline.explain.directions_measured import Declined

    say(f"explain: {len(read.learned)} replies to training prompts")
    replies = reader.replies([prompt.messages for prompt in read.learned], config.max_reply_tokens)
    outcomes = [judge_reply(reply, prompt.request)[0] for reply, prompt in zip(replies, read.learned, strict=True)]
    return Declined.of(outcomes, read.pools)


def _ablation(
    config: DirectionsConfig, material: Material, reader: Reader, cases: Sequence[Case], refusal: Fit | None
) -> list[Ablation]:
    """Empty if there is no refusal direction, or if it is switched off."""
    if refusal is None or not config.num_ablated:
        return []
    chosen = asked_again(cases, config.num_ablated, material.seed)
    try:
        with material.context.meter.running():
            return ablation(reader, chosen, refusal.vector, config.max_reply_tokens, material.seed, material.confidence)
    except NotMeasuredError as reason:
        material.notes.append(f"What removing the refusal direction does was not measured: {reason}.")
        return []
