"""What a measure is: a number that is counted from verdicts, with what tables, report and guidelines say of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evals.results import DIRECT, Direction, Estimate
from pipeline.evals.statistics import bootstrap, resampled, share, wilson
from pipeline.records import Case, Verdict

Scores = dict[str, float]  # case id → score; NaN: could not be judged
Score = Callable[[Sequence[Verdict]], Scores]
Unit = Literal["rate", "share", "mean", "perplexity"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row of the table.

    ``score`` gives each of a model's cases a number, so that two models can be tested on the cases that both answered;
    a case without a score does not count. Where no case has a number of its own, ``estimate`` reads the verdicts of the
    first model and of this one. A measure with neither is found by the questions of its suite.
    """

    title: str
    how: str
    better: Direction | None
    unit: Unit = "rate"
    score: Score | None = None
    estimate: Callable[[Sequence[Verdict], Sequence[Verdict], float], Estimate | None] | None = None
    cells: Callable[[Case], str] | None = None
    """The part of a table that a case belongs to, where models are also compared part by part."""

    @property
    def is_fraction(self) -> bool:
        """Whether it lies between 0 and 1."""
        return self.unit in {"rate", "share"}


def outcome_scores(outcome: str, suite: str, pool: str, attacked: bool = False) -> Score:
    """1 for each case of a suite and pool that came out so, 0 for the others."""

    def score(verdicts: Sequence[Verdict]) -> Scores:
        return {
            v.case.id: came_out(v, outcome)
            for v in verdicts
            if suite in v.case.suites and v.case.prompt.pool == pool and (v.case.attack != DIRECT) is attacked
        }

    return score


def came_out(verdict: Verdict, outcome: str) -> float:
    """1 or 0; NaN where the judge could not be read: shown as asked, and counted nowhere."""
    return math.nan if verdict.outcome == "unjudged" else float(verdict.outcome == outcome)


def estimated(scores: Scores, unit: Unit, confidence: float) -> Estimate:
    """The mean of the scores in the measure's unit, with its interval."""
    values = np.array([score for score in scores.values() if not math.isnan(score)])
    if unit == "rate":
        return wilson(int(values.sum()), len(values), confidence)
    if unit == "share":
        return share(values, confidence)
    if not len(values):
        return Estimate(value=None)
    numbers = bootstrap(values, confidence=confidence)
    return resampled(tuple(map(math.exp, numbers)) if unit == "perplexity" else numbers, len(values))
