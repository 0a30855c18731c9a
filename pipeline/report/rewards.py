"""What the report says of the reward model, and of the held-out prompts of a training on rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.evals.calibration import Bin
from pipeline.evals.results import Change, Estimate
from pipeline.evals.statistics import paired_difference, resampled
from pipeline.report.build import Report
from pipeline.report.wording import difference, number, percent, words, written

SHOWN_AS = ("reward model", "longer reply")  # who is right, in the order of an accuracy row
_REWARD = "reward"  # the measure on the test split

Row = tuple[str, list[Estimate | None]]


# --- The reward model -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """How well the run's reward model predicts the labels of pairs it was not trained on."""

    accuracy: Estimate
    longer: Estimate
    """How often always taking the longer reply is right."""
    parts: dict[str, Estimate]
    """Accuracy on some of the pairs, by what they are called."""
    loss: Estimate
    loss_of_one_half: float
    loss_least_possible: float
    calibration_error: float | None
    bins: list[Bin]
    num_train: dict[str, int]
    num_held_out: dict[str, int]

    @property
    def beats_chance(self) -> bool:
        return self.accuracy.low is not None and self.accuracy.low > 0.5

    @property
    def rows(self) -> list[Row]:
        """The reward model and the longer reply on all pairs, and the reward model on parts of them."""
        return [("all pairs", [self.accuracy, self.longer]), *((name, [e, None]) for name, e in self.parts.items())]

    @property
    def num_pairs(self) -> dict[str, str]:
        """Name of a row → how many pairs it counts."""
        return {name: f"{found[0].total} pairs" for name, found in self.rows if found[0]}

    @property
    def said(self) -> list[str]:
        """What the numbers bear, in sentences."""
        sentences = [self._agreement(), self._baseline(), self._loss(), self._calibration()]
        return [sentence for sentence in sentences if sentence]

    def _agreement(self) -> str:
        found = self.accuracy
        if found.value is None:
            return "No held-out pair has a label that prefers a side: nothing is known of the reward model's accuracy."
        if found.low is None or found.high is None:
            verdict = "too few to tell it from chance"
        elif found.low > 0.5:
            verdict = "more often than chance would"
        elif found.high < 0.5:
            verdict = "less often than chance would"
        else:
            verdict = "the interval includes one half: no evidence that it is better than chance"
        return f"It prefers the reply that the label prefers in {written(found, share=True)} held-out pairs; {verdict}."

    def _baseline(self) -> str:
        if self.longer.value is None:
            return ""
        return (
            f"Always taking the longer reply is right in {written(self.longer, share=True)}, always taking the shorter "
            f"in {percent(1 - self.longer.value)}."
        )

    def _loss(self) -> str:
        found, half = self.loss, self.loss_of_one_half
        if found.value is None:
            return ""
        if found.low is None or found.high is None:
            verdict = ""
        elif found.high < half:
            verdict = "; it is below that"
        elif found.low > half:
            verdict = "; it is above that: no opinion would be better than its own"
        else:
            verdict = ", which the interval includes"
        return (
            f"Its loss on them is {written(found)} nats a pair. The least possible is "
            f"{number(self.loss_least_possible)}, because the labels themselves are unsure; always saying one half has "
            f"{number(half)}{verdict}."
        )

    def _calibration(self) -> str:
        if self.calibration_error is None:
            return ""
        return (
            f"Its expected calibration error is {number(self.calibration_error)}; 0 is best, and few pairs make it "
            "large by chance alone."
        )


def reward_model(report: Report) -> RewardModel | None:
    """The reward model that the run trained, if it did."""
    if "reward" not in report.manifests:
        return None
    found = report.manifests["reward"].metrics
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
    )


def _parts(metrics: Mapping[str, Any]) -> dict[str, Estimate]:
    named = {
        **metrics["accuracy_by_source"],
        **{f"{size} margin": one for size, one in metrics["accuracy_by_margin"].items()},
        **{words(which): one for which, one in metrics["accuracy_by_length"].items()},
    }
    return {name: Estimate(**one) for name, one in named.items()}


# --- Held-out prompts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The prompts of the validation split, before training on rewards and at the step that was kept."""

    num_prompts: int
    before: float
    after: float
    change: Change
    best_step: int
    num_steps: int
    kl: float | None
    """Nats a reply from the SFT model, at the step that was kept."""
    max_kl: float | None
    num_rollbacks: int
    stopped: str | None

    @property
    def difference(self) -> str:
        return difference(self.change, "mean")

    @property
    def course(self) -> str:
        """How training went on its way to the bounds."""
        again = {0: "Training never had to go back", 1: "Training went back once"}
        went_back = again.get(self.num_rollbacks, f"Training went back {self.num_rollbacks} times")
        end = f"was stopped: {self.stopped}" if self.stopped else "ran to its end"
        return f"{went_back} to a policy within its bounds, and {end}."


def held_out(report: Report) -> HeldOut | None:
    """Held-out prompts before and after, where the method scores any (PPO, RLOO, GRPO)."""
    manifest = report.manifests.get("align")
    if manifest is None or "held_out_scores" not in manifest.metrics:
        return None
    found = manifest.metrics
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
    )


def _is_kept(row: Mapping[str, Any], kept: int) -> bool:
    return row["step"] == kept and "held_out/kl" in row


def _change(found: Estimate, kept: int) -> Change:
    """Only the interval speaks here: no test is made on prompts that chose what they are to judge."""
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
    "better": "The interval excludes zero: on these prompts the step that was kept scores higher",
    "worse": "The interval excludes zero: on these prompts the step that was kept scores lower",
    "no evidence of change": "The interval includes zero: no evidence that the score on these prompts changed",
    "not measured": "These are too few prompts for an interval",
}


def held_out_said(report: Report, found: HeldOut) -> str:
    """What the held-out prompts bear, and where the claim is to be looked for."""
    said = _SAID[found.change.verdict] if found.best_step else "No later step was better than what training began with"
    return f"{said}. They also chose the step that was kept, which flatters it; {_claim(report)}."


def _claim(report: Report) -> str:
    pairs = report.pairs_of_models()
    said = report.change(_REWARD, *pairs[-1]) if pairs else ""
    if not said:
        return "what training did is for the measures on the test split to say"
    before, after = (words(model) for model in pairs[-1])
    title = report.title_of(_REWARD)
    return f"the claim is the measure “{title}” on the test split: {said}, {after} against {before}"


# --- Tables -----------------------------------------------------------------------------------------------------------


def reward_tables(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Table name → rows, for whoever draws their own; empty where there was no training on rewards."""
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
