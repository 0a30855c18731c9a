"""Count how often replies keep to each principle, and how far two judges agree. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.evals.changes import change_pairs, compare_scores
from pipeline.evals.results import Change, Estimate
from pipeline.evals.scores import Scores, estimated
from pipeline.evals.statistics import benjamini_hochberg, bootstrap, resampled
from pipeline.explain.probes import Probe
from pipeline.records import Verdict

MEASURE = "adherence"
NUM_CHECKED = 2  # requests of each principle that a labeller is asked about which knows only declining
ByPrinciple = Mapping[str, Mapping[str, Scores]]
"""Principle id → model → case id → 1 if the reply keeps to the principle, 0 if not; NaN if that is not known."""


class Kept(BaseModel):
    """How often each principle was kept, by one judge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    rates: dict[str, dict[str, Estimate]]
    """Principle id → model → share of the replies that keep to it. Without principles that the judge can't judge."""
    changes: list[Change]
    """Of each principle, from the first model to the last and between the last two; corrected over principles."""
    num_unreadable: int
    """Replies, once for each principle, about which it gave no answer that can be read."""


def answered_by_all(verdicts: Mapping[str, Sequence[Verdict]], models: Sequence[str]) -> dict[str, dict[str, Verdict]]:
    """Case id → model → its verdict, for the cases to which every model replied."""
    found: dict[str, dict[str, Verdict]] = {}
    for model in models:
        for verdict in verdicts.get(model, []):
            if verdict.replied:
                found.setdefault(verdict.case.id, {})[model] = verdict
    return {case_id: mine for case_id, mine in found.items() if len(mine) == len(models)}


def first_of_each(probes: Sequence[Probe]) -> list[Probe]:
    """The first probes of each principle."""
    number = Counter[str]()
    found = []
    for probe in probes:
        number[probe.principle_id] += 1
        if number[probe.principle_id] <= NUM_CHECKED:
            found.append(probe)
    return found


def by_principle(scores: Mapping[tuple[str, str, str], float]) -> dict[str, dict[str, Scores]]:
    """``ByPrinciple`` from (principle id, model, case id) → score."""
    found: dict[str, dict[str, Scores]] = {}
    for (rule, model, case), score in scores.items():
        found.setdefault(rule, {}).setdefault(model, {})[case] = score
    return found


def kept(judge: str, scores: ByPrinciple, models: Sequence[str], confidence: float) -> Kept:
    """Rates with Wilson's intervals, and McNemar's tests of the same replies.

    They are corrected over principles by Benjamini & Hochberg: of the principles that are said to have changed, a few
    may not have. Holm's correction would name none of 16 principles of which each gains 9 of 12 requests.
    """
    changes = [
        change
        for before, after in change_pairs(models)
        for change in compare_scores(
            {f"{MEASURE}:{rule}": (dict(mine[before]), dict(mine[after])) for rule, mine in scores.items()},
            before,
            after,
            confidence,
            benjamini_hochberg,
        )
    ]
    return Kept(
        judge=judge,
        rates={
            rule: {model: estimated(dict(mine[model]), "rate", confidence) for model in models}
            for rule, mine in scores.items()
        },
        changes=changes,
        num_unreadable=sum(
            math.isnan(score) for mine in scores.values() for own in mine.values() for score in own.values()
        ),
    )


def agree(
    first: ByPrinciple, second: ByPrinciple, confidence: float, without: Collection[str] = ()
) -> tuple[Estimate, Estimate]:
    """(how often two judges say the same, Cohen's κ), over the replies that both judged.

    ``without``: ids of cases that don't count.

    A request has replies of several models, perhaps under several principles, so requests are resampled, not replies.
    """
    by_case: dict[str, list[tuple[float, float]]] = {}
    for rule, mine in second.items():
        for model, scores in mine.items():
            for case, score in scores.items():
                if case in without or case not in first.get(rule, {}).get(model, {}):
                    continue
                both = (first[rule][model][case], score)
                if not any(map(math.isnan, both)):
                    by_case.setdefault(case, []).append(both)
    if not by_case:
        return Estimate(value=None), Estimate(value=None)
    sums = [(len(p), sum(a == b for a, b in p), sum(a for a, _ in p), sum(b for _, b in p)) for p in by_case.values()]
    columns = list(np.array(sums, float).T)
    number, same = int(columns[0].sum()), int(columns[1].sum())
    share = resampled(bootstrap(*columns, statistic=_share_alike, confidence=confidence), len(by_case))
    kappa = resampled(bootstrap(*columns, statistic=cohens_kappa, confidence=confidence), len(by_case))
    return share.model_copy(update={"count": same, "total": number}), kappa


def _share_alike(number: NDArray, same: NDArray, *_: NDArray) -> NDArray:
    return same.sum(-1) / number.sum(-1)


def cohens_kappa(number: NDArray, same: NDArray, first: NDArray, second: NDArray) -> NDArray:
    """κ = (p_o − p_e) / (1 − p_e) (Cohen 1960). 0 if both judges always say the same one thing: that shows nothing.

    Args:
        number, same, first, second: (…, n) counts for n requests: judged replies, those on which both judges agree, and
            those of which the first, and the second, says yes.
    """
    total = number.sum(-1)
    seen, yes, also = same.sum(-1) / total, first.sum(-1) / total, second.sum(-1) / total
    chance = yes * also + (1 - yes) * (1 - also)
    return np.where(chance < 1, (seen - chance) / np.where(chance < 1, 1 - chance, 1), 0.0)
