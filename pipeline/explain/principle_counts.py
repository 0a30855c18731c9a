"""Count what each principle did: the revisions under it, and the labels that it turned. Pure functions on records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.core.text import words
from pipeline.evals.judges.refusal import judge_reply
from pipeline.evals.results import Estimate
from pipeline.evals.statistics import bootstrap, holm, mcnemar, resampled, wilson
from pipeline.labellers.base import soft_label
from pipeline.records import Exchange, Preference

NEARLY_ALL = 0.95  # of the comparisons that two principles share: if they agree so often, one of them is spare
Logits = Mapping[str, float]
"""Principle id → its log-odds that reply A of one comparison is better; without answers that can't be read."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Revised(_Part):
    """What the critiques under one principle did to the replies."""

    num_revisions: int
    words_edited: Estimate
    """Words inserted, deleted or replaced in one revision, on average."""
    share_edited: Estimate
    """The same as a share of the words of the longer text."""
    turned_to_refusal: Estimate
    """Of the replies that comply before the revision, those that decline after it."""


class Labelled(_Part):
    """What one principle did in the labels."""

    num_labels: int
    """The labels for which it was drawn."""
    num_unreadable: int
    num_alone: int
    """The labels that it gave alone: there, nothing shows what another principle would have said."""
    mean_logit: Estimate
    """Its log-odds that reply A is better."""
    prefers_a: Estimate
    """Of its judgements that prefer a reply, those that prefer reply A."""
    with_others: Estimate
    """How often it prefers the same reply as the mean of the other principles on the same comparison."""
    turned: Estimate
    """Of the labels that it shares with other principles, those that turn without it."""


class Pair(_Part):
    """How often two principles prefer the same reply. ``p_corrected``: that they agree as often as not (Holm)."""

    first: str
    second: str
    agreement: Estimate
    p_corrected: float | None


# --- Revisions -----------------------------------------------------------------------------------------------------


def word_edits(before: str, after: str) -> int:
    """The least number of words to insert, delete or replace (Levenshtein 1966), without case and punctuation.

    It computes a row of the table at a time. An insertion costs 1 for each place, so the running minimum of
    ``row - places`` finds the best number of insertions.
    """
    old, new = words(before), np.array(words(after), dtype=object)
    places = np.arange(len(new) + 1)
    row = places
    for word in old:
        replaced = np.concatenate([[row[0] + 1], row[:-1] + (new != word)])
        row = np.minimum.accumulate(np.minimum(row + 1, replaced) - places) + places
    return int(row[-1])


def steps(exchanges: Sequence[Exchange]) -> dict[str, list[tuple[str, str, str]]]:
    """Principle id → (request, reply before, reply after) of each revision under it."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for exchange in exchanges:
        before = exchange.reply
        for revision in exchange.revisions:
            step = (exchange.prompt.request, before, revision.revision)
            found.setdefault(revision.principle_id, []).append(step)
            before = revision.revision
    return found


def revised(steps: Sequence[tuple[str, str, str]], confidence: float) -> Revised:
    """Count the revisions under one principle: (request, reply before, reply after) of each."""
    declined = [
        judge_reply(after, request)[0] == "refused"
        for request, before, after in steps
        if judge_reply(before, request)[0] == "complied"
    ]
    return Revised(
        num_revisions=len(steps),
        words_edited=mean([word_edits(before, after) for _, before, after in steps], confidence),
        share_edited=mean(edit_shares(steps), confidence),
        turned_to_refusal=wilson(sum(declined), len(declined), confidence),
    )


def edit_shares(steps: Sequence[tuple[str, str, str]]) -> list[float]:
    """The words edited in each revision, as a share of the words of the longer text."""
    return [word_edits(before, after) / max(len(words(before)), len(words(after)), 1) for _, before, after in steps]


def differ(groups: Sequence[Sequence[float]]) -> float | None:
    """p of "no group tends to larger values than another" (Kruskal & Wallis 1952). None for fewer than two groups, or
    if all values are equal."""
    if len(groups) < 2 or len({value for group in groups for value in group}) < 2:
        return None
    from scipy.stats import kruskal

    return float(kruskal(*groups).pvalue)


def mean(values: Sequence[float], confidence: float) -> Estimate:
    return resampled(bootstrap(values, confidence=confidence), len(values)) if values else Estimate(value=None)


# --- Labels --------------------------------------------------------------------------------------------------------


def logits_of(preference: Preference) -> dict[str, float]:
    return {j.principle_id: j.logit for j in preference.judgements if j.logit is not None}


def labelled(
    principle_id: str, preferences: Sequence[Preference], clamp: tuple[float, float], confidence: float
) -> Labelled:
    """Count the labels for which a principle was drawn.

    Args:
        clamp: the lowest and the highest label that the labeller gives.
    """
    drawn = [p for p in preferences if any(j.principle_id == principle_id for j in p.judgements)]
    read = [(p.probability_a, logits) for p in drawn if principle_id in (logits := logits_of(p))]
    own = [logits[principle_id] for _, logits in read]
    others = [[logit for name, logit in logits.items() if name != principle_id] for _, logits in read]
    shared = [(label, rest) for (label, _), rest in zip(read, others, strict=True) if rest and label not in (None, 0.5)]
    num_turned = sum(_turns(label, soft_label(rest, clamp)) for label, rest in shared)
    return Labelled(
        num_labels=len(drawn),
        num_unreadable=len(drawn) - len(read),
        num_alone=sum(not rest for rest in others),
        mean_logit=mean(own, confidence),
        prefers_a=wilson(sum(logit > 0 for logit in own), sum(logit != 0 for logit in own), confidence),
        with_others=same_side(own, [float(np.sum(rest)) for rest in others], confidence),
        turned=wilson(num_turned, len(shared), confidence),
    )


def _turns(label: float | None, without: float | None) -> bool:
    """Whether a label that prefers one reply does not prefer it any more."""
    return label is not None and without is not None and (label - 0.5) * (without - 0.5) <= 0


def same_side(first: Sequence[float], second: Sequence[float], confidence: float) -> Estimate:
    """How often two logits have the same sign. Those that prefer neither reply don't count."""
    decided = [(a, b) for a, b in zip(first, second, strict=True) if a and b]
    return wilson(sum((a > 0) == (b > 0) for a, b in decided), len(decided), confidence)


def pairs(judged: Sequence[Logits], principle_ids: Sequence[str], confidence: float) -> list[Pair]:
    """All pairs of principles that judged a comparison both. The exact binomial test asks whether agreements and
    disagreements are equally likely; McNemar's test is the same."""
    found = []
    for first, second in combinations(principle_ids, 2):
        both = [(logits[first], logits[second]) for logits in judged if first in logits and second in logits]
        agreement = same_side([a for a, _ in both], [b for _, b in both], confidence)
        if agreement.total:
            found.append((first, second, agreement))
    corrected = holm([mcnemar(e.count or 0, e.total - (e.count or 0)) for *_, e in found])
    return [
        Pair(first=first, second=second, agreement=agreement, p_corrected=p)
        for (first, second, agreement), p in zip(found, corrected, strict=True)
    ]


def near_duplicates(pairs: Sequence[Pair], least: int) -> list[tuple[str, str]]:
    """Pairs that nearly always agree, over at least so many comparisons."""
    return [
        (pair.first, pair.second)
        for pair in pairs
        if pair.agreement.total >= least and (pair.agreement.value or 0) >= NEARLY_ALL
    ]


def contradictions(pairs: Sequence[Pair], level: float) -> list[tuple[str, str]]:
    """Pairs that agree significantly less often than not: the corrected p is below ``level``."""
    return [
        (pair.first, pair.second)
        for pair in pairs
        if (pair.agreement.value or 0) < 0.5 and pair.p_corrected is not None and pair.p_corrected < level
    ]
