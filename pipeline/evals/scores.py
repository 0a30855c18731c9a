"""The interface of a measure: how it is computed from verdicts, and how tables and reports name it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evals.results import DIRECT, Direction, Estimate
from pipeline.evals.statistics import bootstrap, resampled, share, wilson
from pipeline.records import Case, Verdict

Scores = dict[str, float]  # case id → score; NaN: the judge's answer was not readable
Score = Callable[[Sequence[Verdict]], Scores]
Unit = Literal["rate", "share", "mean", "perplexity"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row of the table.

    ``score`` maps the verdicts of one model to a score per case, so that two models can be compared case by case; cases
    without a score do not count. If there is no score per case, ``estimate(first, mine, confidence)`` gets the verdicts
    of the first model and of this one. A measure without both comes from the questions of its suite.
    """

    title: str
    how: str
    better: Direction | None
    unit: Unit = "rate"
    score: Score | None = None
    estimate: Callable[[Sequence[Verdict], Sequence[Verdict], float], Estimate | None] | None = None
    cells: Callable[[Case], str] | None = None
    """Case → cell, such as a kind of harm. If set, models are also compared in each cell."""

    @property
    def is_fraction(self) -> bool:
        """Whether its values are between 0 and 1."""
        return self.unit in {"rate", "share"}


def outcome_scores(outcome: str, suite: str, pool: str, attacked: bool = False) -> Score:
    """1 if a case has the outcome, else 0; for the cases of one suite and pool, with or without an attack."""

    def score(verdicts: Sequence[Verdict]) -> Scores:
        return {
            v.case.id: came_out(v, outcome)
            for v in verdicts
            if suite in v.case.suites and v.case.prompt.pool == pool and (v.case.attack != DIRECT) is attacked
        }

    return score


def came_out(verdict: Verdict, outcome: str) -> float:
    """1 if the verdict has this outcome, else 0; NaN if it is ``unjudged``, which no rate counts."""
    return math.nan if verdict.outcome == "unjudged" else float(verdict.outcome == outcome)


def estimated(scores: Scores, unit: Unit, confidence: float) -> Estimate:
    """The mean of the scores that are not NaN, with its interval; ``perplexity`` is exp of the mean."""
    values = np.array([score for score in scores.values() if not math.isnan(score)])
    if unit == "rate":
        return wilson(int(values.sum()), len(values), confidence)
    if unit == "share":
        return share(values, confidence)
    if not len(values):
        return Estimate(value=None)
    numbers = bootstrap(values, confidence=confidence)
    return resampled(tuple(map(math.exp, numbers)) if unit == "perplexity" else numbers, len(values))
