"""Compare two models on the same cases: paired differences, tests and corrections."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np

from pipeline.evals.measures import all_measures
from pipeline.evals.results import Change, Said
from pipeline.evals.scores import Measure, Scores
from pipeline.evals.statistics import holm, mcnemar, paired_difference, paired_rates, sign_flip_test
from pipeline.records import Verdict


def all_changes(
    verdicts: Mapping[str, Sequence[Verdict]], confidence: float, only: Collection[str] | None = None
) -> list[Change]:
    """Compare every model with the first one and with the one before it.

    Args:
        verdicts: by model.
        only: the names of the measures; None: all.
    """
    models = list(verdicts)
    pairs = dict.fromkeys([(models[0], model) for model in models[1:]] + list(pairwise(models)))
    return [change for pair in pairs for change in changes(verdicts, *pair, confidence, only)]


def change_pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """The (before, after) pairs of a table: first and last model, and the last two. Empty for one model."""
    return list(dict.fromkeys([(models[0], models[-1]), (models[-2], models[-1])])) if len(models) > 1 else []


def changes(
    verdicts: Mapping[str, Sequence[Verdict]],
    before: str,
    after: str,
    confidence: float,
    only: Collection[str] | None = None,
) -> list[Change]:
    """One change per measure, on the cases that both models answered; p is corrected over the measures."""
    names = all_measures() if only is None else only
    scored = {name: m.score for name, m in all_measures().items() if m.score is not None and name in names}
    scores = {name: (score(verdicts[before]), score(verdicts[after])) for name, score in scored.items()}
    return compare_scores(scores, before, after, confidence)


def compare_scores(
    scores: Mapping[str, tuple[Scores, Scores]],
    before: str,
    after: str,
    confidence: float,
    correct: Callable[[Sequence[float | None]], list[float | None]] = holm,
) -> list[Change]:
    """One change per measure with scores of ``before`` or ``after``; p is corrected over them."""
    found = [_change(name, *pair, before, after, confidence) for name, pair in scores.items() if any(pair)]
    corrected = correct([change.p for change in found])
    return [
        change.model_copy(update={"p_corrected": p, "verdict": _verdict(change, p, 1 - confidence)})
        for change, p in zip(found, corrected, strict=True)
    ]


def _change(name: str, old: Scores, new: Scores, before: str, after: str, confidence: float) -> Change:
    common = [case for case in old if case in new and not math.isnan(old[case] + new[case])]
    if not common:
        return Change(measure=name, before=before, after=after, difference=None, verdict="not measured")
    a, b = (np.array([scores[case] for case in common]) for scores in (old, new))
    gained = lost = None
    if base_measure(name).unit == "rate":
        gained, lost = int((b > a).sum()), int((a > b).sum())
        difference, low, high = paired_rates(gained, lost, len(common), confidence)
        p = mcnemar(gained, lost)
    else:
        difference, low, high = paired_difference(a, b, confidence)
        p = sign_flip_test(b - a)
    return Change(
        measure=name,
        before=before,
        after=after,
        difference=difference,
        low=low,
        high=high,
        p=p,
        num_gained=gained,
        num_lost=lost,
        verdict="no evidence of change",
    )


def base_measure(name: str) -> Measure:
    """The measure of a change, whose name is ``measure`` or, for one cell of a table, ``measure:cell``."""
    return all_measures()[name.partition(":")[0]]


def _verdict(change: Change, p: float | None, level: float) -> Said:
    """No evidence if the interval of the difference covers zero or the corrected p is not below ``level``."""
    if change.difference is None or change.low is None or change.high is None or p is None:
        return "not measured"
    better = base_measure(change.measure).better
    if p >= level or change.low <= 0 <= change.high:
        return "no evidence of change"
    if better is None:
        return "differs"
    return "better" if (change.difference < 0) == (better == "lower") else "worse"


def cell_changes(verdicts: Mapping[str, Sequence[Verdict]], before: str, after: str, confidence: float) -> list[Change]:
    """The same tests in each cell (``Measure.cells``), such as a kind of harm; p is corrected per measure."""
    found: list[Change] = []
    for name, measure in all_measures().items():
        if measure.cells is None or measure.score is None:
            continue
        parts: dict[str, tuple[Scores, Scores]] = {}
        for side, model in enumerate((before, after)):
            scores = measure.score(verdicts[model])
            for case in (v.case for v in verdicts[model] if v.case.id in scores):
                cell = f"{name}:{measure.cells(case)}"
                parts.setdefault(cell, ({}, {}))[side][case.id] = scores[case.id]
        found += compare_scores(parts, before, after, confidence)
    return found
