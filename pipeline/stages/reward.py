"""reward: train a reward model on the labels, and measure it on held-out pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.log import warn
from pipeline.core.settings import part
from pipeline.core.stage import WEIGHTS, Context, Cost, Memory, Metrics, Prepared, Stage
from pipeline.core.text import words
from pipeline.data.counterfactuals import set_of
from pipeline.data.splits import refuse_overlap
from pipeline.engines.base import ReplyQuery, Scored
from pipeline.engines.classifiers import check_can_classify
from pipeline.engines.worklist import Worklist
from pipeline.evals.calibration import held_out_metrics
from pipeline.evals.cases import build_cases, build_comparisons
from pipeline.evals.results import Estimate
from pipeline.evals.shortcuts import shortcut_metrics
from pipeline.evals.suites.pairs import HumanPairsConfig, human_pairs
from pipeline.methods.base import num_steps
from pipeline.records import (
    Comparison,
    PairSource,
    Preference,
    Prompt,
    RewardScore,
    derive_seed,
    derived_rng,
    read_records,
    write_records,
)
from pipeline.training.config import TrainConfig
from pipeline.training.history import write_history

if TYPE_CHECKING:
    from pipeline.chain.config import Config
    from pipeline.engines.reward_model import RewardModel

HUMAN = "human"
TOKENS_PER_TURN = 50  # for estimates of tokens read
NUM_REFERENCE = 256  # the standard deviation of 512 rewards is known to 3 %


class RewardConfig(TrainConfig):
    """A Bradley-Terry model of the labels, trained on harmlessness and helpfulness comparisons."""

    init: Literal["sft", "base"] = "sft"
    """Start from the SFT model (PPO then shares one backbone for all its models) or from the base model. In later
    ``rounds``, the newest policy takes the place of the SFT model."""
    helpful_ratio: float = Field(default=1.0, ge=0)
    """The most helpfulness comparisons (ordinary requests and look-alikes) per harmlessness comparison."""
    human: HumanPairsConfig = HumanPairsConfig()
    """Comparisons with human choices, in addition to AI labels."""
    hard_labels: bool = False
    """Round each label to 0 or 1, and drop ties."""
    held_out_fraction: float = Field(default=0.2, ge=0.05, le=0.5)
    """Share of the prompts that is held out to measure accuracy and calibration."""
    center_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the squared sum of a pair's rewards in the loss; it keeps rewards near 0 (arXiv 2312.09244, eq. 2)."""


class Reward(Stage):
    """The reward model."""

    name, needs = "reward", ("sft", "preferences")
    outputs = ("scores.jsonl", "model/config.json", *WEIGHTS)
    version = 6
    repeats = True

    def wanted(self, config: Config) -> bool:
        return super().wanted(config) and config.align.trains_reward_model

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        base = ("path", "revision") if config.reward.init == "base" else ()
        return {"seed": config.seed, "model": part(config.model, "precision", "tuning", "lora", *base)}

    def check(self, prepared: Prepared) -> list[str]:
        from pipeline.engines.reward_model import check_scoring

        config, notes = prepared.config, list[str]()
        human = human_pairs(config.reward.human, notes)
        held_out = [prompt for prompt in prepared.prompts if prompt.split != "train"]
        if human:  # the suites must not use them either
            tested = [prompt for prompt in held_out if prompt.split == config.evaluate.split]
            held_out += [case.prompt for case in build_cases(config.evaluate, tested, [])]
            held_out += [pair.prompt for pairs in build_comparisons(config.evaluate, []).values() for pair in pairs]
        refuse_overlap(held_out, {pair.prompt.key: "reward.human" for pair in human})
        if human and config.preferences.compares_openings:
            raise ConfigError(
                f"reward.human has {len(human)} pairs of whole replies, but preferences.pairs is 'openings', so the "
                "reward model reads only how replies begin; use preferences=pool, or reward.human.source=none."
            )
        check_can_classify(config.model.path, config.model.revision, "model.path")
        check_scoring(config.model.path, config.model.revision, "model.path")
        return notes

    def cost(self, prepared: Prepared) -> Cost:
        config, seed = prepared.config, prepared.config.seed
        prompts = config.preferences.compared_prompts(prepared)
        placeholders = [
            Preference(
                comparison=Comparison(id=p.id, prompt=p, reply_a="a", reply_b="b", seed_a=0, seed_b=0),
                judgements=[],
                probability_a=1.0,
                labeller="",
                template="",
            )
            for p in prompts
        ]
        pairs = placeholders + human_preferences(config.reward, seed, [])
        rest, held_out = split_by_prompt(pairs, config.reward.held_out_fraction)
        training = mixed(rest, config.reward.helpful_ratio, seed)
        num_reference = len(reference_pairs(training, seed))
        own = config.preferences
        longest = own.max_opening_tokens if own.compares_openings else own.max_reply_tokens
        tokens = 2 * (TOKENS_PER_TURN + longest)
        return Cost(
            num_calls=2 * (len(held_out) + num_reference),
            num_tokens_read=round(len(training) * tokens * config.reward.num_epochs),
            num_steps=num_steps(len(training), config.reward),
        )

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_training

        return of_training(self.name, prepared, prepared.config.reward, num_reply_tokens=0, num_replies=2)

    def run(self, config: RewardConfig, context: Context) -> Metrics:
        from pipeline.engines.reward_model import load_reward_model, write_reward_scaling
        from pipeline.training.reward import train_reward

        notes: list[str] = []
        preferences = list(read_records(context.folder("preferences") / "preferences.jsonl", Preference))
        preferences += human_preferences(config, context.seed, notes)
        labelled = usable(preferences, config.hard_labels)
        rest, held_out = split_by_prompt(labelled, config.held_out_fraction)
        training = mixed(rest, config.helpful_ratio, context.seed)
        reference = reference_pairs(training, context.seed)
        if not reference or not held_out:
            what = "AI-labelled pairs to train on" if not reference else "pairs to hold out"
            raise StageError(
                f"reward has no {what}: of {len(preferences)} pairs {len(labelled)} have a usable label, "
                f"{len(held_out)} are held out, and reward.helpful_ratio allows {config.helpful_ratio:g} helpfulness "
                f"pairs per harmlessness pair; label more pairs (preferences.num_red_team) or look at those in "
                f"{context.folder('preferences')}."
            )
        if distributed.is_main():
            write_records(context.out / "rows.jsonl", training)
        base_path = str(context.folder("sft") / "model") if config.init == "sft" else context.model.path
        metrics, history = train_reward(training, base_path, config, config.center_coefficient, context)
        model = load_reward_model(str(context.out / "model"), batch_rows=context.launch.batch_rows)
        asks = [ask for preference in (*held_out, *reference) for ask in queries(preference)]
        work = Worklist(context.log("scores"), Scored, context.meter)
        found = work.run("scoring replies", model.batches(asks), model.score_batch)
        logits = {row_id: row.score for row_id, row in found.items()}
        if not all(map(math.isfinite, logits.values())):
            raise StageError("reward: the trained model's scores are not finite; lower reward.learning_rate.")
        training, held_out = ([as_read(preference, model) for preference in part] for part in (training, held_out))
        gauged = [logits[ask.id] for preference in reference for ask in queries(preference)]
        mean, std = fmean(gauged), pstdev(gauged) or 1.0
        scores = [reward_score(preference, logits) for preference in held_out]
        held_out_found = held_out_metrics(scores)
        margins = {score.id: score.reward_a - score.reward_b for score in scores}
        if distributed.is_main():
            if (held_out_found["accuracy"]["low"] or 0) <= 0.5:
                warn(
                    f"the reward model agrees with {Estimate(**held_out_found['accuracy'])} of held-out labels, which "
                    "may be chance; label more pairs (preferences.num_red_team) before training against it."
                )
            write_history(context.out, history)
            write_reward_scaling(context.out / "model", mean, std)
            write_records(context.out / "scores.jsonl", scores)
            measured = {name: held_out_found[name]["value"] for name in ("accuracy", "loss_held_out")}
            context.tracker.log({f"reward/{name}": value for name, value in measured.items() if value is not None})
        return {
            "num_train": count_by_source(training),
            "num_held_out": count_by_source(held_out),
            "num_unusable": len(preferences) - len(labelled),
            "num_left_out_by_ratio": len(rest) - len(training),
            **metrics,
            **held_out_found,
            "shortcuts": shortcut_metrics(training, held_out, margins),
            "num_reference_replies": len(gauged),
            "reward_mean": mean,
            "reward_std": std,
            "notes": notes,
        }


def human_preferences(config: RewardConfig, seed: int, notes: list[str]) -> list[Preference]:
    """Human choices as labels of 0 or 1. The chosen reply is A or B at random, so its position has no meaning."""
    found = []
    for pair in human_pairs(config.human, notes):
        turned = bool(derive_seed(seed, "human pair", pair.id) % 2)
        found.append(
            Preference(
                comparison=pair.swap() if turned else pair,
                judgements=[],
                probability_a=float(not turned),
                labeller=HUMAN,
                template="",
            )
        )
    return found


def usable(preferences: Sequence[Preference], hard_labels: bool) -> list[Preference]:
    """The comparisons with a label. With ``hard_labels``, labels are rounded to 0 or 1 and ties are dropped."""
    labelled = [(preference, preference.probability_a) for preference in preferences]
    if not hard_labels:
        return [preference for preference, label in labelled if label is not None]
    return [
        preference.model_copy(update={"probability_a": float(label > 0.5)})
        for preference, label in labelled
        if label not in (None, 0.5)
    ]


def split_by_prompt(preferences: Sequence[Preference], fraction: float) -> tuple[list[Preference], list[Preference]]:
    """(training pairs, held-out pairs), split by the hash of the prompt: all pairs of a prompt, and all groups of a
    counterfactual template, are on one side."""
    keys = {_unit(preference.comparison.prompt) for preference in preferences}
    order = sorted(keys, key=lambda key: derive_seed("reward held out", key))
    held = set(order[: max(1, round(fraction * len(order)))])
    rest = [preference for preference in preferences if _unit(preference.comparison.prompt) not in held]
    return rest, [preference for preference in preferences if _unit(preference.comparison.prompt) in held]


def _unit(prompt: Prompt) -> str:
    return set_of(prompt.id) or prompt.key


def mixed(preferences: Sequence[Preference], helpful_ratio: float, seed: int) -> list[Preference]:
    """All harmlessness and human pairs, and at most ``helpful_ratio`` helpfulness pairs per harmlessness pair."""
    by_source = {source: [p for p in preferences if source_of(p) == source] for source in get_args(PairSource)}
    helpful = by_source["helpfulness"]
    derived_rng(seed, "helpfulness pairs").shuffle(helpful)
    most = round(helpful_ratio * len(by_source["harmlessness"]))
    return [*by_source["harmlessness"], *helpful[:most], *by_source["human"]]


def reference_pairs(training: Sequence[Preference], seed: int) -> list[Preference]:
    """The AI-labelled pairs whose replies give the mean and standard deviation of rewards: some hundred are enough."""
    labelled = [preference for preference in training if source_of(preference) != HUMAN]
    return derived_rng(seed, "reference pairs").sample(labelled, min(NUM_REFERENCE, len(labelled)))


def source_of(preference: Preference) -> PairSource:
    if preference.labeller == HUMAN:
        return "human"
    return "harmlessness" if preference.comparison.prompt.pool == "red_team" else "helpfulness"


def count_by_source(preferences: Sequence[Preference]) -> dict[str, int]:
    return dict(Counter(source_of(preference) for preference in preferences))


def queries(preference: Preference) -> list[ReplyQuery]:
    """Reply A, then reply B."""
    pair = preference.comparison
    return [
        ReplyQuery(id=f"{pair.id}/{side}", messages=pair.prompt.messages, reply=reply)
        for side, reply in (("a", pair.reply_a), ("b", pair.reply_b))
    ]


def as_read(preference: Preference, model: RewardModel) -> Preference:
    """The comparison with what the reward model reads of both replies."""
    pair = preference.comparison
    read = {side: model.read_part(getattr(pair, side)) for side in ("reply_a", "reply_b")}
    return preference.model_copy(update={"comparison": pair.model_copy(update=read)})


def reward_score(preference: Preference, logits: dict[str, float]) -> RewardScore:
    pair = preference.comparison
    assert preference.probability_a is not None
    return RewardScore(
        id=pair.id,
        source=source_of(preference),
        pool=pair.prompt.pool,
        reward_a=logits[f"{pair.id}/a"],
        reward_b=logits[f"{pair.id}/b"],
        probability_a=preference.probability_a,
        num_words_a=len(words(pair.reply_a)),
        num_words_b=len(words(pair.reply_b)),
    )
