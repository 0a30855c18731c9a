"""preferences: sample two replies per prompt, and let an AI labeller give each pair a soft label."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from pipeline.constitution.critique import tidy
from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.counts import warn_of_share
from pipeline.core.log import warn
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage, Use
from pipeline.data.drawing import PoolSizes
from pipeline.engines.base import ENGINES, Engine, EngineConfig, Request
from pipeline.engines.roles import BASE, feedback_engine, policy_engine
from pipeline.engines.worklist import generate_all
from pipeline.evals.label_changes import cost_of_changes, made_of
from pipeline.labellers.base import (
    LABELLERS,
    TEMPLATE,
    LabellerConfig,
    binary_entropy_bits,
    constitution_fields,
    reads_choices,
)
from pipeline.labellers.label import cost, label, num_failed, num_refused
from pipeline.methods.base import METHODS
from pipeline.records import Comparison, Preference, Prompt, derive_seed, read_records, write_records

if TYPE_CHECKING:
    from pipeline.chain.config import Config

TOKENS_PER_TURN = 50  # for estimates of tokens read
MOST_FLIPPED = 0.5  # of the comparisons: as many would depend on the order if letters were drawn
PURPOSE = "labels"  # part of the seed that draws principles


class PreferencesConfig(PoolSizes):
    """Comparisons and their AI labels (Bai et al. 2022, section 4.1)."""

    labeller: Annotated[SerializeAsAny[LabellerConfig], BeforeValidator(LABELLERS.parse)]
    """The labeller, which decides which reply is better."""
    pairs: Literal["contrast", "sampled"]
    """``contrast``: a refusal by the SFT model and a base model's reply; ``sampled``: two replies of the SFT model."""
    num_contrasts: int = Field(ge=0)
    """How many contrasts of the constitution become comparisons; their labels come from the constitution."""
    temperature: float = Field(ge=0, le=5)
    """Sampling temperature of the replies."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling (top-p) of the replies; 1 turns it off."""
    max_reply_tokens: int = Field(ge=1)
    """The most tokens per reply."""
    num_probed: int = Field(default=40, ge=0)
    """How many labels are asked for again with the principle's words, the prompt's pool or a reply's length changed, to
    measure what decides them; 0: none. It changes no label."""
    engine: Annotated[SerializeAsAny[EngineConfig] | None, BeforeValidator(ENGINES.parse_optional)] = None
    """The engine of the labeller and of the constitution's rewards; null: that of ``engine``."""

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if self.num_prompts == 0:
            raise ValueError(
                "{here}.num_red_team, {here}.num_ordinary and {here}.num_look_alike are all 0; label some comparisons"
            )
        if self.temperature == 0:
            raise ValueError("{here}.temperature is 0, so both replies would be the same; set it above 0")
        return self

    def labelled_prompts(self, prepared: Prepared) -> list[Prompt]:
        """The prompts whose comparisons the labeller judges."""
        return self.training_prompts(prepared.prompts)

    def compared_prompts(self, prepared: Prepared) -> list[Prompt]:
        """The prompts of all comparisons including contrasts, if no reply is empty."""
        written = prepared.constitution.contrast_prompts(self.num_contrasts)
        return self.labelled_prompts(prepared) + [prompt for _, *both in written for prompt in both]


class Preferences(Stage):
    """Comparisons with soft labels."""

    name, needs, outputs = "preferences", ("prompts", "sft"), ("preferences.jsonl",)
    version = 4

    def wanted(self, config: Config) -> bool:
        method = METHODS[config.align.method]
        return super().wanted(config) and (method.reads_preferences or config.align.trains_reward_model)

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        own = config.preferences
        fields = set(constitution_fields(own.labeller))
        if own.pairs == "contrast":  # for the opening of refusals
            fields |= {"contrasts", "worked_examples"}
        if own.num_contrasts:
            fields |= {"contrasts"}
        return {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision"),
            "policy_engine": config.policy_engine,
            "engine": config.feedback_engine("preferences"),
            "constitution": part(constitution, *sorted(fields)),
            "template": TEMPLATE,
        }

    def check(self, prepared: Prepared) -> list[str]:
        config, constitution = prepared.config.preferences, prepared.constitution
        notes = LABELLERS[config.labeller.kind].notes(config.labeller, constitution)
        if config.pairs == "contrast" and not constitution.opening():
            notes.append(
                "preferences.pairs is 'contrast', but the constitution does not show how a refusal begins (two or more "
                "refusals in worked_examples or contrasts, of which most begin with the same two words), so two "
                "replies of the SFT model are compared instead."
            )
        return notes

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        return config.feedback_engines("preferences")

    def read_choices(self, config: Config) -> set[str]:
        return set(self.engines(config)) if reads_choices(config.preferences.labeller) else set()

    def uses(self, prepared: Prepared) -> list[Use]:
        config = prepared.config.preferences
        prompts = [prompt.messages for prompt in config.compared_prompts(prepared)]
        return [Use(what="preferences: replies to compare", dialogues=prompts, reply_tokens=config.max_reply_tokens)]

    def cost(self, prepared: Prepared) -> Cost:
        config, seed = prepared.config.preferences, prepared.config.seed
        labelled, written = config.labelled_prompts(prepared), config.compared_prompts(prepared)
        written = written[len(labelled) :]
        placeholders = [
            Comparison(id=prompt.id, prompt=prompt, reply_a="a", reply_b="b", seed_a=0, seed_b=0) for prompt in labelled
        ]
        [(field, engine)] = prepared.config.feedback_engines("preferences").items()
        tokens = 4 * TOKENS_PER_TURN + config.max_reply_tokens
        asked = (placeholders, engine, config.labeller, prepared.constitution, seed, PURPOSE, tokens)
        labeller = Cost.sum([cost(*asked), cost_of_changes(*asked, config.num_probed)])
        num_replies = 2 * len(labelled) + len(written)
        policy = Cost(
            num_calls=num_replies,
            num_tokens_written=num_replies * config.max_reply_tokens,
            num_tokens_read=num_replies * TOKENS_PER_TURN,
        )
        return Cost.of_roles({"policy_engine": policy, field: labeller})

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_generation

        return of_generation(prepared, prepared.config.preferences.max_reply_tokens)

    def run(self, config: PreferencesConfig, context: Context) -> Metrics:
        prompts = read_records(context.folder("prompts") / "prompts.jsonl", Prompt)
        chosen = config.training_prompts(prompts, "preferences")
        sampler = _Sampler(config, context)
        if config.pairs == "contrast" and context.constitution.opening():
            comparisons = sampler.contrast_pairs(chosen)
        else:
            comparisons = sampler.sampled_pairs(chosen)
        written = sampler.worked_pairs() if config.num_contrasts else []
        sampler.warn_of_losses(len(comparisons) + len(written))
        labeller, constitution = feedback_engine(context, sampler.release()), context.constitution
        asked = (labeller, config.labeller, constitution, context.seed, context, PURPOSE)
        preferences = label(comparisons, *asked)
        refused, failed = num_refused(context, PURPOSE), num_failed(context, PURPOSE)
        _warn_of_unreadable_answers(preferences, labeller.name, refused, failed, context)
        preferences += [_written(comparison) for comparison in written]
        if distributed.is_main():
            labels = [p.probability_a for p in preferences if p.judgements and p.probability_a is not None]
            if labels and all(label == 0.5 for label in labels):
                warn("the labeller prefers neither reply in every comparison; its labels teach nothing.")
            _warn_of_order(preferences, labeller.name)
            write_records(context.out / "preferences.jsonl", preferences)
            _show(preferences, context)
        made = made_of(preferences, *asked, config.num_probed)
        return {
            "num_prompts": len(chosen),
            "num_written_labels": len(written),
            "num_pairs_asked": len(comparisons)
            + len(written)
            + sampler.num_empty
            + sampler.num_identical
            + sampler.num_unanswered,
            "num_unanswered_dropped": sampler.num_unanswered,
            "num_empty_dropped": sampler.num_empty,
            "num_identical_dropped": sampler.num_identical,
            "num_refused_by_the_server": refused,
            "num_failed_requests": failed,
            **label_statistics(preferences),
            **made.model_dump(),
        }


class _Sampler:
    """Samples the two replies of each pair, and counts the pairs that are dropped."""

    def __init__(self, config: PreferencesConfig, context: Context) -> None:
        self._config, self._context = config, context
        self.num_empty = self.num_identical = self.num_unanswered = 0
        self._unanswered = set[str]()  # prompts without one of the two replies
        self._open: tuple[str, Engine] | None = None  # the model that is loaded, or has a server

    def sampled_pairs(self, prompts: Sequence[Prompt]) -> list[Comparison]:
        """Two samples of the SFT model (Bai et al. 2022, section 4.1)."""
        a, b = (self._replies("sft", prompts, side) for side in ("a", "b"))
        return self._pairs(prompts, a, b)

    def contrast_pairs(self, prompts: Sequence[Prompt]) -> list[Comparison]:
        """A is a reply of the SFT model with the start of a refusal as prefill; B is a reply of the base model. Each
        pair thus has a refusal and an answer: one is wrong for harmful requests, the other for harmless ones."""
        declining = self._replies("sft", prompts, "a", begun=self._context.constitution.opening())
        return self._pairs(prompts, declining, self._replies(BASE, prompts, "b"))

    def worked_pairs(self) -> list[Comparison]:
        """Two pairs per contrast of the constitution, for the harmful request and for its harmless twin. A is the
        written refusal in both; B is a reply of the base model."""
        contrasts = self._context.constitution.contrast_prompts(self._config.num_contrasts)
        prompts = [prompt for _, harmful, twin in contrasts for prompt in (harmful, twin)]
        if not prompts:
            return []
        refusals = {prompt.id: contrast.revision for contrast, *both in contrasts for prompt in both}
        return self._pairs(prompts, refusals, self._replies(BASE, prompts, "b"))

    def _replies(self, who: str, prompts: Sequence[Prompt], side: str, begun: str = "") -> dict[str, str]:
        config = self._config
        path = self._context.model.path if who == BASE else str(self._context.folder("sft") / "model")
        requests = [
            Request(
                id=f"{prompt.id}/{side}",
                messages=prompt.messages,
                seed=self._seed(prompt, side),
                max_new_tokens=config.max_reply_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                prefix=begun,
            )
            for prompt in prompts
        ]
        if self._open is None or self._open[0] != who:
            self._open = None  # it needs room for the next one
            self._open = (who, policy_engine(self._context, path, who))
        engine = self._open[1]
        label = f"replies of {who}" + (" that decline" if begun else "")
        done = generate_all(engine, label, requests, self._context, "replies")
        kept = {request.id.rpartition("/")[0]: done[request.id] for request in requests}
        self._unanswered |= {prompt_id for prompt_id, reply in kept.items() if reply.why_unanswered}
        return {
            prompt_id: tidy(f"{begun} {reply.text}".strip(), cut_off=reply.finish == "length") if reply.text else ""
            for prompt_id, reply in kept.items()
        }

    def release(self) -> Engine | None:
        """Let go of the open model. Returns its engine if it is the base model."""
        who, engine = self._open or ("", None)
        self._open = None
        return engine if who == BASE else None

    def warn_of_losses(self, num_kept: int) -> None:
        """Warn if many pairs are left out. Raises StageError if all are."""
        left_out = self.num_empty + self.num_identical + self.num_unanswered
        missing = f", {self.num_unanswered} without one of the replies" if self.num_unanswered else ""
        warn_of_share(
            left_out,
            num_kept + left_out,
            f"pairs are left out ({self.num_empty} with an empty reply or one without a whole sentence, "
            f"{self.num_identical} with two equal replies{missing})",
            "raise preferences.max_reply_tokens or preferences.temperature",
        )

    def _seed(self, prompt: Prompt, side: str) -> int:
        return derive_seed(self._context.seed, prompt.key, "preference", side)

    def _pairs(self, prompts: Sequence[Prompt], a: dict[str, str], b: dict[str, str]) -> list[Comparison]:
        comparisons = []
        for prompt in prompts:
            reply_a, reply_b = a[prompt.id], b[prompt.id]
            if prompt.id in self._unanswered:
                self.num_unanswered += 1
            elif not reply_a or not reply_b:
                self.num_empty += 1
            elif reply_a == reply_b:
                self.num_identical += 1
            else:
                seed_a, seed_b = (self._seed(prompt, side) for side in ("a", "b"))
                comparisons.append(
                    Comparison(
                        id=prompt.id, prompt=prompt, reply_a=reply_a, reply_b=reply_b, seed_a=seed_a, seed_b=seed_b
                    )
                )
        return comparisons


def _written(comparison: Comparison) -> Preference:
    """The label that the constitution gives: refuse a harmful request (reply A), answer its twin (reply B)."""
    return Preference(
        comparison=comparison,
        judgements=[],
        probability_a=1.0 if comparison.prompt.pool == "red_team" else 0.0,
        labeller="constitution",
        template=TEMPLATE,
    )


def _warn_of_unreadable_answers(
    preferences: Sequence[Preference], labeller: str, num_refused: int, num_failed: int, context: Context
) -> None:
    judgements = [judgement for preference in preferences for judgement in preference.judgements]
    why = [f"the server refused {num_refused} questions"] if num_refused else []
    why += [f"{num_failed} questions have no answer"] if num_failed else []
    reasons = f" ({', '.join(why)})" if why else ""
    warn_of_share(
        sum(judgement.logit is None for judgement in judgements),
        len(judgements),
        f"judgements of the labeller {labeller} can't be read{reasons}",
        "use another labeller (engine or preferences.labeller) or, if it answers with low probabilities, lower "
        "preferences.labeller.min_answer_mass",
        kept=context.work,
    )


def _warn_of_order(preferences: Sequence[Preference], labeller: str) -> None:
    """A labeller that names the same letter in both orders has not compared the replies."""
    flipped = [j.flipped for preference in preferences for j in preference.judgements if j.flipped is not None]
    if sum(flipped) > MOST_FLIPPED * len(flipped):
        warn(
            f"the labeller {labeller} chose the same letter in both orders in {sum(flipped)} of {len(flipped)} "
            "judgements, so its labels say little; use a larger labeller (engine), or preferences=likelihood."
        )


def label_statistics(preferences: Sequence[Preference]) -> Metrics:
    """Statistics of the labels: counts, entropy in bits, and rates from 0 to 1 (None without data)."""
    labelled = [(p, p.probability_a) for p in preferences if p.probability_a is not None]
    judgements = [judgement for preference in preferences for judgement in preference.judgements]
    orders = [judgement.flipped for judgement in judgements if judgement.flipped is not None]
    lengths = [(len(p.comparison.reply_a) - len(p.comparison.reply_b), label) for p, label in labelled]
    decided = [(difference > 0) == (label > 0.5) for difference, label in lengths if difference and label != 0.5]
    return {
        "num_pairs": len(labelled),
        "num_parse_failures": sum(judgement.logit is None for judgement in judgements),
        "num_judgements": len(judgements),
        "order_flip_rate": fmean(orders) if orders else None,
        "entropy_bits_mean": fmean(binary_entropy_bits(label) for _, label in labelled) if labelled else None,
        "longer_reply_wins_rate": fmean(decided) if decided else None,
        "confidence_mean": fmean(abs(label - 0.5) * 2 for _, label in labelled) if labelled else None,
    }


def _show(preferences: Sequence[Preference], context: Context) -> None:
    rows = [
        (p.comparison.prompt.request, p.comparison.reply_a, p.comparison.reply_b, p.probability_a)
        for p in preferences[:50]
    ]
    context.tracker.table("preferences/samples", ("prompt", "reply_a", "reply_b", "probability_a"), rows)
