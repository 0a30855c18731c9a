"""The report's parts on the reward model and on the held-out prompts of policy-gradient training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.core.text import count_of
from pipeline.evals.calibration import Bin
from pipeline.evals.results import Change, Estimate
from pipeline.evals.statistics import paired_difference, resampled
from pipeline.report.build import Report
from pipeline.report.knows import REQUESTS
from pipeline.report.wording import difference, number, percent, words, written

SHOWN_AS = ("reward model", "longer reply")  # the columns of an accuracy row
_REWARD = "reward"  # the measure on the test split

Row = tuple[str, list[Estimate | None]]


# --- The reward model -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """How well the run's reward model predicts the labels of held-out pairs. Losses are in nats per pair."""

    accuracy: Estimate
    longer: Estimate
    """Accuracy of always choosing the longer reply."""
    parts: dict[str, Estimate]
    """Name of a subset of the pairs → accuracy on it."""
    loss: Estimate
    loss_of_one_half: float
    loss_least_possible: float
    calibration_error: float | None
    bins: list[Bin]
    num_train: dict[str, int]
    num_held_out: dict[str, int]
    num_reply_tokens: int | None
    """It reads only so many first tokens of a reply; None: all."""

    @property
    def beats_chance(self) -> bool:
        return self.accuracy.low is not None and self.accuracy.low > 0.5

    @property
    def rows(self) -> list[Row]:
        """Accuracies: of the reward model and the longer reply on all pairs, and of the reward model on subsets."""
        return [("all pairs", [self.accuracy, self.longer]), *((name, [e, None]) for name, e in self.parts.items())]

    @property
    def num_pairs(self) -> dict[str, str]:
        """Name of a row → its number of pairs, as text."""
        return {name: f"{found[0].total} pairs" for name, found in self.rows if found[0]}

    @property
    def said(self) -> list[str]:
        """The results in sentences."""
        sentences = [self._agreement(), self._baseline(), self._loss(), self._calibration(), self._what_it_reads()]
        return [sentence for sentence in sentences if sentence]

    def _agreement(self) -> str:
        found = self.accuracy
        if found.value is None:
            return "No held-out pair has a label that prefers one reply, so the reward model's accuracy is unknown."
        if found.low is None or found.high is None:
            verdict = "these are too few to compare it with chance"
        elif found.low > 0.5:
            verdict = "this is more often than by chance"
        elif found.high < 0.5:
            verdict = "this is less often than by chance"
        else:
            verdict = "the interval includes one half, so there is no evidence that it is better than chance"
        return f"It prefers the reply that the label prefers in {written(found, share=True)} held-out pairs; {verdict}."

    def _baseline(self) -> str:
        if self.longer.value is None:
            return ""
        return (
            f"Always choosing the longer reply is right in {written(self.longer, share=True)}, and always choosing the "
            f"shorter reply in {percent(1 - self.longer.value)}."
        )

    def _loss(self) -> str:
        found, half = self.loss, self.loss_of_one_half
        if found.value is None:
            return ""
        if found.low is None or found.high is None:
            verdict = ""
        elif found.high < half:
            verdict = "; its loss is below that"
        elif found.low > half:
            verdict = "; its loss is above that, so it is worse than a constant prediction"
        else:
            verdict = ", which the interval includes"
        return (
            f"Its loss on them is {written(found)} nats per pair. The lowest possible loss is "
            f"{number(self.loss_least_possible)}, because the labels are probabilities. A constant prediction of one "
            f"half has a loss of {number(half)}{verdict}."
        )

    def _calibration(self) -> str:
        if self.calibration_error is None:
            return ""
        return (
            f"Its expected calibration error is {number(self.calibration_error)}; 0 is best, and with few pairs it is "
            "large by chance alone."
        )

    def _what_it_reads(self) -> str:
        if self.num_reply_tokens is None:
            return ""
        return (
            f"It was trained on how replies begin, and reads only the first {count_of(self.num_reply_tokens, 'token')} "
            "of a reply; it says nothing about the rest."
        )


def reward_model(report: Report) -> RewardModel | None:
    """Return the results of the (last) reward model that the run trained, or None if it trained none."""
    manifest = report.manifests.get(report.newest("reward"))
    if manifest is None:
        return None
    found = manifest.metrics
    return RewardModel(
        accuracy=Estimate(**found["accuracy"]),
        longer=Estimate(**found["accuracy_of_longer_reply"]),
        parts=_parts(found),
        loss=Estimate(**found["loss_held_out"]),
        loss_of_one_half=found["loss_of_one_half"],
        loss_least_possible=found["loss_least_possible"],
        calibration_error=found["calibration_error"],
        bins=[Bin(**one) for one in found["reliability"]],
        num_train=found["num_train"],
        num_held_out=found["num_held_out"],
        num_reply_tokens=found.get("num_reply_tokens"),
    )


def _parts(metrics: Mapping[str, Any]) -> dict[str, Estimate]:
    by_source, by_pool = metrics["accuracy_by_source"], metrics.get("accuracy_by_pool")
    if by_pool is not None:  # old runs have none
        human = {source: one for source, one in by_source.items() if source == "human"}
        by_source = {REQUESTS[pool]: one for pool, one in by_pool.items()} | human
    named = {
        **by_source,
        **{f"{size} margin": one for size, one in metrics["accuracy_by_margin"].items()},
        **{words(which): one for which, one in metrics["accuracy_by_length"].items()},
    }
    return {name: Estimate(**one) for name, one in named.items()}


# --- Held-out prompts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Mean scores on prompts of the validation split, at step 0 and at the kept step."""

    num_prompts: int
    before: float
    after: float
    change: Change
    best_step: int
    num_steps: int
    kl: float | None
    """KL to the SFT model at the kept step, in nats per reply."""
    max_kl: float | None
    num_rollbacks: int
    stopped: str | None
    num_unreadable: int
    kept_by_judge: bool
    """The second judge chose the kept step, because it fell while the reward rose."""

    @property
    def difference(self) -> str:
        return difference(self.change, "mean")

    @property
    def choice(self) -> str:
        """Why the kept step is kept."""
        if self.kept_by_judge:
            return "The kept step is the best one by the second judge."
        return "The kept step has the highest score after penalties for KL and for replies that were cut off."

    @property
    def course(self) -> str:
        """How often training rolled back, how it ended, and how many replies have no readable reward."""
        again = {0: "Training never rolled back", 1: "Training rolled back once"}
        went_back = again.get(self.num_rollbacks, f"Training rolled back {self.num_rollbacks} times")
        end = f"was stopped: {self.stopped}" if self.stopped else "completed all steps"
        unreadable = (
            f" No answer of the constitution's judge could be read on {self.num_unreadable} replies in training, so "
            "their reward from it is 0."
            if self.num_unreadable
            else ""
        )
        return f"{went_back} to a policy within its bounds, and {end}.{unreadable}"


def held_out(report: Report) -> HeldOut | None:
    """Return the scores on held-out prompts, or None if the method has none (only PPO, RLOO and GRPO have)."""
    manifest = report.manifests.get("align")
    if manifest is None or "held_out_scores" not in manifest.metrics:
        return None
    found, judge = manifest.metrics, manifest.metrics.get("second_judge", {})
    before, after, kept = *(found["held_out_scores"][step] for step in ("0", "best")), found["best_step"]
    numbers = resampled(paired_difference(before, after, report.confidence), len(before))
    return HeldOut(
        num_prompts=len(before),
        before=fmean(before),
        after=fmean(after),
        change=_change(numbers, kept),
        best_step=kept,
        num_steps=found["num_steps"],
        kl=next((row["held_out/kl"] for row in report.histories.get("align", []) if _is_kept(row, kept)), None),
        max_kl=manifest.fields["config"].get("max_kl"),
        num_rollbacks=found["num_rollbacks"],
        stopped=found["stopped"],
        num_unreadable=found.get("num_unreadable_rewards", 0),
        kept_by_judge=bool(judge.get("overoptimised") and judge["stops"]),
    )


def _is_kept(row: Mapping[str, Any], kept: int) -> bool:
    return row["step"] == kept and "held_out/kl" in row


def _change(found: Estimate, kept: int) -> Change:
    """The change by its interval alone: these prompts also selected the kept step, so a test would be biased."""
    known = found.low is not None and found.high is not None
    above, below = known and (found.low or 0) > 0, known and (found.high or 0) < 0
    return Change(
        measure="held_out_score",
        before="step 0",
        after=f"step {kept}",
        difference=found.value,
        low=found.low,
        high=found.high,
        verdict="better" if above else "worse" if below else "no evidence of change" if known else "not measured",
    )


_SAID = {
    "better": "The interval excludes zero: the kept step scores higher on these prompts",
    "worse": "The interval excludes zero: the kept step scores lower on these prompts",
    "no evidence of change": "The interval includes zero: there is no evidence that the score on these prompts changed",
    "not measured": "There are too few prompts for an interval",
}


def held_out_said(report: Report, found: HeldOut) -> str:
    """What the held-out prompts show, and which measure shows the effect of training."""
    said = _SAID[found.change.verdict]
    if not found.best_step:
        better = "better by the second judge" if found.kept_by_judge else "better"
        said = f"No later step was {better} than step 0"
    return f"{said}. The kept step was chosen on these prompts, so its score is biased upwards; {_claim(report)}."


def _claim(report: Report) -> str:
    pairs = report.pairs_of_models()
    said = report.change(_REWARD, *pairs[-1]) if pairs else ""
    if not said:
        return "for the effect of training, see the measures on the test split"
    before, after = (words(model) for model in pairs[-1])
    title = report.title_of(_REWARD)
    return f"for the effect of training, see “{title}” on the test split: {said}, {after} compared with {before}"


# --- Tables -----------------------------------------------------------------------------------------------------------


def reward_tables(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Table name → rows, for CSV and JSON. A table is empty if the run has no such data."""
    model, prompts = reward_model(report), held_out(report)
    return {
        "reward_model": [
            {"who": who, "pairs": name} | estimate.model_dump()
            for name, row in (model.rows if model else [])
            for who, estimate in zip(SHOWN_AS, row, strict=True)
            if estimate
        ],
        "reward_reliability": [one.model_dump() for one in model.bins] if model else [],
        "held_out_prompts": [_held_out_row(prompts)] if prompts else [],
    }


def _held_out_row(found: HeldOut) -> dict[str, Any]:
    return {
        "num_prompts": found.num_prompts,
        "score_before": found.before,
        "score_kept": found.after,
        "difference": found.change.difference,
        "low": found.change.low,
        "high": found.change.high,
        "kept_step": found.best_step,
        "num_steps": found.num_steps,
        "kl": found.kl,
        "max_kl": found.max_kl,
        "num_rollbacks": found.num_rollbacks,
        "stopped": found.stopped,
    }
