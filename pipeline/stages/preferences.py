"""preferences: pairs of replies for each prompt, and a soft label for each pair, mostly by an AI labeller."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.counts import warn_of_share
from pipeline.core.errors import ConfigError
from pipeline.core.log import warn
from pipeline.core.settings import part
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared, Stage, Use
from pipeline.data.counterfactuals import counterfactual_sets
from pipeline.data.drawing import PoolSizes
from pipeline.engines.base import ENGINES, EngineConfig
from pipeline.engines.roles import feedback_engine
from pipeline.evals.counterfactuals import compare_groups, refuse_evaluated
from pipeline.evals.label_changes import cost_of_changes, made_of
from pipeline.evals.label_check import METRIC, check_labeller, cost_of_check
from pipeline.evals.made_of import CONSTITUTION, COUNTERFACTUAL, POOL
from pipeline.labellers.base import (
    LABELLERS,
    SAMPLING_FIELDS,
    TEMPLATE,
    LabellerConfig,
    binary_entropy_bits,
    constitution_fields,
    reads_choices,
)
from pipeline.labellers.label import cost, label, num_failed, num_refused
from pipeline.labellers.sampling import Sampler, filed
from pipeline.methods.base import METHODS
from pipeline.records import Comparison, Preference, Prompt, read_records, write_records

if TYPE_CHECKING:
    from pipeline.chain.config import Config

TOKENS_PER_TURN = 50  # for estimates of tokens read
MOST_FLIPPED = 0.5  # of the comparisons: as many would depend on the order if letters were drawn
NUM_CHECKED = 60
PURPOSE = "labels"  # part of the seed that draws principles


class PreferencesConfig(PoolSizes):
    """Comparisons and their AI labels (Bai et al. 2022, section 4.1)."""

    labeller: Annotated[SerializeAsAny[LabellerConfig], BeforeValidator(LABELLERS.parse)]
    """The labeller, which decides which reply is better."""
    pairs: Literal["contrast", "openings", "sampled"]
    """``contrast``: a refusal by the SFT model and a base model's reply; ``openings``: only how both begin;
    ``sampled``: replies of the SFT model, and of the newest policy in later ``rounds``."""
    num_samples: int = Field(default=2, ge=2, multiple_of=2)
    """With ``pairs=sampled``: how many replies are sampled for each prompt, an even number. They make half as many
    pairs."""
    labels: Literal["labeller", "pool"] = "labeller"
    """Who gives the labels: the labeller, or the pool in which a prompt is filed (declining is right for red_team)."""
    max_opening_tokens: int = Field(default=12, ge=1)
    """The most tokens of the base model's reply in ``openings``."""
    num_contrasts: int = Field(ge=0)
    """How many contrasts of the constitution become comparisons; their labels come from the constitution."""
    num_counterfactuals: int = Field(default=0, ge=0)
    """How many counterfactual templates (docs/fairness.md) become comparisons, one for each group of an attribute, all
    with the same label."""
    temperature: float = Field(ge=0, le=5)
    """Sampling temperature of the replies."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling (top-p) of the replies; 1 turns it off."""
    max_reply_tokens: int = Field(ge=1)
    """The most tokens per reply."""
    num_probed: int = Field(default=40, ge=0)
    """How many labels are asked for again with the principle's words, the prompt's pool or a reply's length changed, to
    measure what decides them; 0: none. It changes no label, but another number labels again."""
    num_checked: int = Field(default=NUM_CHECKED, ge=0)
    """On how many shipped pairs, of which people preferred one reply, the labeller is tested before it labels; 0: none.
    It changes no label."""
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
        if self.labels == "pool" and self.pairs == "sampled":
            raise ValueError(
                "{here}.labels is 'pool', which says whether declining is right, but {here}.pairs is 'sampled', so no "
                "pair has a refusal and an answer; use {here}.labels=labeller, or {here}.pairs=contrast"
            )
        if self.num_samples > 2 and self.pairs != "sampled":
            raise ValueError(
                f"{{here}}.num_samples is {self.num_samples}, but {{here}}.pairs is {self.pairs!r}, which compares two "
                "replies to each prompt; use {here}.pairs=sampled, or {here}.num_samples=2"
            )
        return self

    def key(self) -> dict[str, Any]:
        """Without settings that have their usual value, and did not exist before: earlier results stay valid."""
        usual = {"num_samples": 2, "num_checked": NUM_CHECKED, "num_counterfactuals": 0}
        return {name: value for name, value in super().key().items() if (name, value) not in usual.items()}

    @property
    def compares_openings(self) -> bool:
        """Whether pairs are the beginnings of a refusal and of an answer."""
        return self.pairs == "openings"

    @property
    def asks_labeller(self) -> bool:
        return self.labels == "labeller"

    def labelled_prompts(self, prepared: Prepared) -> list[Prompt]:
        """The prompt of each comparison that the labeller judges, if no reply is dropped. Attacked prompts are counted
        in every round, although the first one has none."""
        chosen = self.training_prompts(prepared.prompts) + prepared.config.adversary.stand_ins(prepared.prompts)
        return [prompt for prompt in chosen for _ in range(self.num_samples // 2)]

    def compared_prompts(self, prepared: Prepared) -> list[Prompt]:
        """The prompt of each comparison including contrasts and counterfactuals, if no reply is dropped."""
        written = prepared.constitution.contrast_prompts(self.num_contrasts)
        sets = counterfactual_sets(prepared.config.data, self.num_counterfactuals)
        return (
            self.labelled_prompts(prepared)
            + [prompt for _, *both in written for prompt in both]
            + [prompt for each in sets for prompt in each.prompts]
        )


class Preferences(Stage):
    """Comparisons with soft labels."""

    name, needs, outputs = "preferences", ("prompts", "sft", "adversary"), ("preferences.jsonl",)
    version = 4
    repeats = True

    def wanted(self, config: Config) -> bool:
        method = METHODS[config.align.method]
        return super().wanted(config) and (method.reads_preferences or config.align.trains_reward_model)

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        own = config.preferences
        fields = set(constitution_fields(own.labeller) if own.asks_labeller else SAMPLING_FIELDS)
        if own.pairs != "sampled":  # for the opening of refusals
            fields |= {"contrasts", "worked_examples"}
        if own.num_contrasts:
            fields |= {"contrasts"}
        cut = {} if own.compares_openings else {"cut_replies": "are beginnings"}  # before, they were taken as whole
        found = cut | {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision"),
            "policy_engine": config.policy_engine,
            "constitution": part(constitution, *sorted(fields)),
            "template": TEMPLATE,
        }
        if own.num_counterfactuals:
            found["counterfactuals"] = counterfactual_sets(config.data, own.num_counterfactuals)
        if not own.asks_labeller:
            return found
        version = LABELLERS[own.labeller.kind].version
        found |= {"labeller_version": version} if version > 1 else {}
        return found | {"engine": config.feedback_engine("preferences")}

    def check(self, prepared: Prepared) -> list[str]:
        config, constitution = prepared.config.preferences, prepared.constitution
        refuse_evaluated(counterfactual_sets(prepared.config.data, config.num_counterfactuals), prepared)
        notes = LABELLERS[config.labeller.kind].notes(config.labeller, constitution) if config.asks_labeller else []
        unknown = (
            f"preferences.pairs is {config.pairs!r}, but the constitution {constitution.name!r} does not show how a "
            "refusal begins (two or more refusals in worked_examples or contrasts, of which most begin with the same "
            "two words)"
        )
        needs_refusals = config.compares_openings or not config.asks_labeller
        if needs_refusals and not constitution.opening():
            raise ConfigError(f"{unknown}; add them, or use align=dpo_whole.")
        if config.pairs == "contrast" and not constitution.opening():
            notes.append(f"{unknown}, so two replies of the SFT model are compared instead.")
        return notes

    def needed(self, config: Config) -> tuple[str, ...]:
        policy = () if config.preferences.compares_openings else ("sft",)
        return ("prompts", *policy, *(["adversary"] if config.adversary.enabled else []))

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        return config.feedback_engines("preferences") if config.preferences.asks_labeller else {}

    def read_choices(self, config: Config) -> set[str]:
        return set(self.engines(config)) if reads_choices(config.preferences.labeller) else set()

    def uses(self, prepared: Prepared) -> list[Use]:
        config = prepared.config.preferences
        prompts = [prompt.messages for prompt in config.compared_prompts(prepared)]
        return [Use(what="preferences: replies to compare", dialogues=prompts, reply_tokens=config.max_reply_tokens)]

    def cost(self, prepared: Prepared) -> Cost:
        config, seed = prepared.config.preferences, prepared.config.seed
        compared, labelled = config.compared_prompts(prepared), config.labelled_prompts(prepared)
        num_replies, longest = len(labelled) + len(compared), config.max_reply_tokens
        if config.compares_openings:
            num_replies, longest = len(compared), config.max_opening_tokens
        policy = Cost(
            num_calls=num_replies,
            num_tokens_written=num_replies * longest,
            num_tokens_read=num_replies * TOKENS_PER_TURN,
        )
        if not config.asks_labeller:
            return Cost.of_roles({"policy_engine": policy})
        [(field, engine)] = prepared.config.feedback_engines("preferences").items()
        opening = prepared.constitution.opening() if config.compares_openings else ""
        placeholders = [
            Comparison(
                id=str(number), prompt=prompt, reply_a=opening or "a", reply_b="b", seed_a=0, seed_b=0, opening=opening
            )
            for number, prompt in enumerate(labelled)
        ]
        asked = (placeholders, engine, config.labeller, prepared.constitution, seed, PURPOSE, 2 * longest)
        check = cost_of_check(*asked[1:5], config.num_checked, opening)
        labeller = Cost.sum([check, cost(*asked), cost_of_changes(*asked, config.num_probed)])
        return Cost.of_roles({"policy_engine": policy, field: labeller})

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_generation

        return of_generation(prepared, prepared.config.preferences.max_reply_tokens)

    def run(self, config: PreferencesConfig, context: Context) -> Metrics:
        prompts = read_records(context.folder("prompts") / "prompts.jsonl", Prompt)
        chosen = config.training_prompts(prompts, "preferences") + _attacked(context)
        sampler, openings = Sampler(config, context), config.compares_openings
        if openings:
            comparisons = sampler.opening_pairs(chosen)
        elif config.pairs == "contrast" and context.constitution.opening():
            comparisons = sampler.contrast_pairs(chosen)
        else:
            comparisons = sampler.sampled_pairs(chosen)
        written = sampler.worked_pairs(openings) if config.num_contrasts else []
        same, num_declined = compare_groups(config.pairs, sampler, context) if config.num_counterfactuals else ([], 0)
        sampler.warn_of_losses(len(comparisons) + len(written) + len(same) + num_declined)
        engine = feedback_engine(context, sampler.release()) if config.asks_labeller else None
        asks = (config.labeller, context.constitution, context.seed, context)
        check = (config.num_checked, context.constitution.opening() if openings else "")
        checked = check_labeller(engine, *asks, *check) if engine and config.num_checked else None
        asked = (*asks, PURPOSE)
        preferences = label(comparisons, engine, *asked) if engine else [filed(pair, POOL) for pair in comparisons]
        refused, failed = num_refused(context, PURPOSE), num_failed(context, PURPOSE)
        name = engine.name if engine else POOL
        _warn_of_unreadable_answers(preferences, name, refused, failed, context)
        preferences += [filed(pair, CONSTITUTION) for pair in written]
        preferences += [filed(pair, COUNTERFACTUAL) for pair in same]
        if distributed.is_main():
            labels = [p.probability_a for p in preferences if p.judgements and p.probability_a is not None]
            if labels and all(label == 0.5 for label in labels):
                warn("the labeller prefers neither reply in every comparison; its labels teach nothing.")
            _warn_of_order(preferences, name)
            write_records(context.out / "preferences.jsonl", preferences)
            _show(preferences, context)
        made = made_of(preferences, engine, *asked, config.num_probed)
        of_groups = {"num_counterfactual_labels": len(same), "num_counterfactuals_declined_dropped": num_declined}
        return {
            "num_prompts": len(chosen),
            "num_written_labels": len(written),
            **(of_groups if config.num_counterfactuals else {}),
            "num_pairs_asked": len(comparisons) + len(written) + len(same) + num_declined + sampler.num_dropped,
            "num_unanswered_dropped": sampler.num_unanswered,
            "num_empty_dropped": sampler.num_empty,
            "num_identical_dropped": sampler.num_identical,
            "num_replies_cut": sampler.num_cut,
            "num_refused_by_the_server": refused,
            "num_failed_requests": failed,
            **label_statistics(preferences),
            **made.model_dump(),
            METRIC: checked.model_dump() if checked else None,
        }


def _attacked(context: Context) -> list[Prompt]:
    """The prompts that broke the policy of the round before, and harmless ones under the same attacks."""
    folder = context.folders.get("adversary")
    return list(read_records(folder / "prompts.jsonl", Prompt)) if folder else []


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
