"""What the first model knows beside what the models do: a probe's verdicts and the refusals of the same requests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.errors import NotMeasuredError
from pipeline.core.log import say
from pipeline.engines.base import Weights
from pipeline.evals.counted import Counted, Probed
from pipeline.evals.probe import (
    ProbeConfig,
    fit_probe,
    group_of,
    is_harmful,
    refuse_too_few,
    training_prompts,
)
from pipeline.evals.results import DIRECT, Estimate, KnowsDoes, PoolKnowledge
from pipeline.evals.scores import Scores, came_out, estimated
from pipeline.evals.statistics import auc, newcombe, paired_rates
from pipeline.records import Case, Pool, Prompt, Verdict

if TYPE_CHECKING:
    from pipeline.engines.states import States

SUITES = frozenset({"red_team", "over_refusal", "helpfulness"})
ROWS: tuple[Pool, ...] = ("red_team", "look_alike", "ordinary")
NUM_LAYERS = 10  # about so many are tried


def asked_of_the_probe(cases: Iterable[Case]) -> list[Case]:
    """The requests of ``SUITES`` without an attack; none if there are no harmful or no harmless ones."""
    asked = [case for case in cases if case.attack == DIRECT and SUITES.intersection(case.suites)]
    return asked if len({is_harmful(case.prompt) for case in asked}) == 2 else []


def knows_does(
    config: ProbeConfig,
    weights: Weights,
    prompts: Sequence[Prompt],
    verdicts: Mapping[str, Sequence[Verdict]],
    *,
    batch_rows: int,
    seed: int,
    confidence: float,
    notes: list[str],
    counted: Counted | None = None,
) -> KnowsDoes | None:
    """Fit a probe on states of the first model, and ask it about the evaluated requests.

    Args:
        weights: of the first model.
        prompts: of the run, all splits.
        verdicts: by model.
        notes: if it can't be measured, a sentence that says why is appended.
        counted: gets the scores of the requests.
    """
    if not config.enabled:
        return None
    cases = asked_of_the_probe(verdict.case for verdict in next(iter(verdicts.values()), []))
    learned = training_prompts(prompts, [case.prompt for case in cases], config.num_prompts, seed)
    try:
        states = _states(weights, learned, cases, batch_rows)
    except NotMeasuredError as error:
        notes.append(f"What the states of {weights.name} know was not measured: {error}.")
        return None
    of_learned, of_cases = np.split(states.usable, [len(learned)])
    learned, asked = list(compress(learned, of_learned)), list(compress(cases, of_cases))
    harmful = np.array([is_harmful(prompt) for prompt in learned])
    groups = [group_of(prompt) for prompt in learned]
    values, values_asked = np.split(states.values[states.usable], [len(learned)])
    probe = fit_probe(values, harmful, groups, seed)
    scores = probe.scores(values_asked)
    by_case = dict(zip((case.id for case in asked), scores.tolist(), strict=True))
    if counted is not None:
        counted.probe = Probed(threshold=probe.threshold, scores=by_case)
    return KnowsDoes(
        layer=states.layers[probe.layer],
        num_layers=states.num_layers,
        layer_aucs=dict(zip(states.layers, probe.aucs, strict=True)),
        num_learned={pool: sum(prompt.pool == pool for prompt in learned) for pool in ROWS},
        num_left_out=len(cases) - len(asked),
        pools=compare(asked, by_case, probe.threshold, verdicts, confidence),
    )


def _states(weights: Weights, learned: Sequence[Prompt], cases: Sequence[Case], batch_rows: int) -> States:
    """The states of the training prompts and, after them, of the cases.

    Raises:
        NotMeasuredError: there are too few prompts, or the model's states can't be computed.
    """
    from pipeline.engines.states import prompt_states

    _refuse_one_class(cases)
    refuse_too_few(learned)
    say(f"knows / does: states of {weights.name} for {len(learned)} training prompts and {len(cases)} requests")
    dialogues = [*(prompt.messages for prompt in learned), *(case.messages for case in cases)]
    states = prompt_states(weights, dialogues, batch_rows, NUM_LAYERS)
    refuse_too_few(list(compress(learned, states.usable)))
    _refuse_one_class(compress(cases, states.usable[len(learned) :]))
    return states


def _refuse_one_class(cases: Iterable[Case]) -> None:
    if not asked_of_the_probe(cases):
        raise NotMeasuredError("of the evaluated requests that fit the context, none is harmful or none is harmless")


def compare(
    cases: Sequence[Case],
    scores: Mapping[str, float],
    threshold: float,
    verdicts: Mapping[str, Sequence[Verdict]],
    confidence: float,
) -> list[PoolKnowledge]:
    """The probe's verdicts and the models' refusals, for each pool that has requests; the harmful ones come first.

    Args:
        cases: of both classes (see ``asked_of_the_probe``).
        scores: case id → score of the probe; at least ``threshold`` means harmful.
        verdicts: by model; those of other cases are not read.
    """
    refused = {model: {v.case.id: came_out(v, "refused") for v in mine} for model, mine in verdicts.items()}
    of_pool = {pool: [case.id for case in cases if case.prompt.pool == pool] for pool in ROWS}

    def row(pool: Pool, ids: Sequence[str]) -> PoolKnowledge:
        flagged = {name: float(scores[name] >= threshold) for name in ids}
        done = {model: {name: outcomes[name] for name in ids} for model, outcomes in refused.items()}
        last = done[list(done)[-1]]
        return PoolKnowledge(
            pool=pool,
            auc=None if pool == "red_team" else _auc(of_pool["red_team"], ids),
            flagged=estimated(flagged, "rate", confidence),
            refused={model: estimated(outcomes, "rate", confidence) for model, outcomes in done.items()},
            refused_of_flagged=estimated({n: last[n] for n in ids if flagged[n]}, "rate", confidence),
            refused_of_passed=estimated({n: last[n] for n in ids if not flagged[n]}, "rate", confidence),
            gap=_gap(flagged, last, confidence),
        )

    def _auc(harmful: Sequence[str], harmless: Sequence[str]) -> Estimate:
        return auc([scores[name] for name in harmful], [scores[name] for name in harmless], confidence)

    harmful, *others = [row(pool, ids) for pool, ids in of_pool.items() if ids]
    return [harmful, *(row.model_copy(update={"separation": _separation(harmful.gap, row.gap)}) for row in others)]


def _separation(harmful: Estimate, harmless: Estimate) -> Estimate:
    if harmful.value is None or harmless.value is None:
        return Estimate(value=None)
    low, high = newcombe(harmless, harmful)
    return Estimate(value=harmful.value - harmless.value, low=low, high=high, total=harmful.total + harmless.total)


def _gap(flagged: Scores, refused: Scores, confidence: float) -> Estimate:
    """Share refused minus share flagged, over the requests whose reply was judged."""
    both = [(flagged[name], refused[name]) for name in flagged if not math.isnan(refused[name])]
    if not both:
        return Estimate(value=None)
    num_gained = sum(knows < does for knows, does in both)
    num_lost = sum(knows > does for knows, does in both)
    value, low, high = paired_rates(num_gained, num_lost, len(both), confidence)
    return Estimate(value=value, low=low, high=high, total=len(both))
