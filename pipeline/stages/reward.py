"""reward: a model of the labels that gives any reply a number, and what it is worth on pairs it has not seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import get_args

from pipeline.chain.config_train import RewardConfig
from pipeline.core import distributed
from pipeline.core.errors import StageError
from pipeline.core.log import warn
from pipeline.engines.base import ReplyQuery, Scored, Worklist
from pipeline.evals.calibration import held_out_metrics
from pipeline.evals.cases import human_pairs
from pipeline.evals.labellers import comparison_of
from pipeline.evals.results import Estimate
from pipeline.evals.text import words
from pipeline.records import PairSource, Preference, RewardScore, derive_seed, derived_rng, read_records, write_records
from pipeline.stages.base import Inputs, Metrics
from pipeline.training.history import write_history

VERSION = 1
HUMAN = "human"


def run(cfg: RewardConfig, inputs: Inputs, out: Path) -> Metrics:
    from pipeline.engines.reward_model import load_reward_model, write_reward_scaling
    from pipeline.training.reward import train_reward

    notes: list[str] = []
    preferences = list(read_records(inputs.folders["preferences"] / "preferences.jsonl", Preference))
    preferences += human_preferences(cfg, inputs.seed, notes)
    labelled = usable(preferences, cfg.hard_labels)
    rest, held_out = split_by_prompt(labelled, cfg.held_out_fraction)
    training = mixed(rest, cfg.helpful_ratio, inputs.seed)
    reference = [preference for preference in training if source_of(preference) != HUMAN]
    if not reference or not held_out:
        what = "AI-labelled pairs to train on" if not reference else "pairs to hold out"
        raise StageError(
            f"reward has no {what}: of {len(preferences)} pairs {len(labelled)} have a usable label, "
            f"{len(held_out)} are held out, and each harmlessness pair admits {cfg.helpful_ratio:g} helpfulness pairs; "
            f"have more pairs labelled (preferences.num_red_team) or look at those in {inputs.folders['preferences']}."
        )
    if distributed.is_main():
        write_records(out / "rows.jsonl", training)
    base_path = str(inputs.folders["sft"] / "model") if cfg.init == "sft" else inputs.model.path
    metrics, history = train_reward(training, base_path, cfg, inputs.setting(out))
    model = load_reward_model(str(out / "model"), batch_rows=inputs.launch.batch_rows)
    asks = [ask for preference in (*held_out, *reference) for ask in queries(preference)]
    log = inputs.log(out, "scores")
    found = Worklist(log, Scored, inputs.watch).run("scoring replies", model.batches(asks), model.score_batch)
    logits = {row_id: row.score for row_id, row in found.items()}
    if not all(map(math.isfinite, logits.values())):
        raise StageError("reward: the trained model's scores are not finite; lower reward.learning_rate.")
    gauged = [logits[ask.id] for preference in reference for ask in queries(preference)]
    mean, std = fmean(gauged), pstdev(gauged) or 1.0
    scores = [reward_score(preference, logits) for preference in held_out]
    held_out_found = held_out_metrics(scores)
    if distributed.is_main():
        if (held_out_found["accuracy"]["low"] or 0) <= 0.5:
            warn(
                f"the reward model agrees with {Estimate(**held_out_found['accuracy'])} of held-out labels, which may "
                "be chance; have more pairs labelled (preferences.num_red_team) before training against it."
            )
        write_history(out, history)
        write_reward_scaling(out / "model", mean, std)
        write_records(out / "scores.jsonl", scores)
        measured = {name: held_out_found[name]["value"] for name in ("accuracy", "loss_held_out")}
        inputs.tracker.log({f"reward/{name}": value for name, value in measured.items() if value is not None})
    return {
        "num_train": count_by_source(training),
        "num_held_out": count_by_source(held_out),
        "num_unusable": len(preferences) - len(labelled),
        "num_left_out_by_ratio": len(rest) - len(training),
        **metrics,
        **held_out_found,
        "num_reference_replies": len(gauged),
        "reward_mean": mean,
        "reward_std": std,
        "notes": notes,
    }


def human_preferences(cfg: RewardConfig, seed: int, notes: list[str]) -> list[Preference]:
    """People's choices as certain labels. Sides are drawn, so that the position of a reply says nothing."""
    found = []
    for pair in human_pairs(cfg.human, notes):
        turned = bool(derive_seed(seed, "human pair", pair.id) % 2)
        chosen_first = comparison_of(pair, split="train")
        found.append(
            Preference(
                comparison=chosen_first.swap() if turned else chosen_first,
                judgements=[],
                probability_a=float(not turned),
                labeller=HUMAN,
                template="",
            )
        )
    return found


def usable(preferences: Sequence[Preference], hard_labels: bool) -> list[Preference]:
    """Those with a label; hard labels are 0 or 1, and a tie has none."""
    labelled = [(preference, preference.probability_a) for preference in preferences]
    if not hard_labels:
        return [preference for preference, label in labelled if label is not None]
    return [
        preference.model_copy(update={"probability_a": float(label > 0.5)})
        for preference, label in labelled
        if label not in (None, 0.5)
    ]


def split_by_prompt(preferences: Sequence[Preference], fraction: float) -> tuple[list[Preference], list[Preference]]:
    """Training and held-out pairs. All pairs of a prompt fall on one side, which the hash of its text decides."""
    keys = {preference.comparison.prompt.key for preference in preferences}
    order = sorted(keys, key=lambda key: derive_seed("reward held out", key))
    held = set(order[: max(1, round(fraction * len(order)))])
    rest = [preference for preference in preferences if preference.comparison.prompt.key not in held]
    return rest, [preference for preference in preferences if preference.comparison.prompt.key in held]


def mixed(preferences: Sequence[Preference], helpful_ratio: float, seed: int) -> list[Preference]:
    """At most ``helpful_ratio`` helpfulness pairs for each harmlessness pair, drawn by the seed; all human ones."""
    by_source = {source: [p for p in preferences if source_of(p) == source] for source in get_args(PairSource)}
    helpful = by_source["helpfulness"]
    derived_rng(seed, "helpfulness pairs").shuffle(helpful)
    most = round(helpful_ratio * len(by_source["harmlessness"]))
    return [*by_source["harmlessness"], *helpful[:most], *by_source["human"]]


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
