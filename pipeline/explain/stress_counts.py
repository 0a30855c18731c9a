"""Count what trade-off requests show of principles: judgements that turn, and pairs that agree or don't. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from pipeline.evals.results import Estimate
from pipeline.evals.statistics import wilson
from pipeline.explain.principle_counts import Pair, contradictions, near_duplicates, pairs
from pipeline.records import Judgement

LEAST = 20  # judgements: with fewer, no principle is called a coin, and no pair near-duplicates
TOO_MANY = 1 / 3  # of an engine's judgements that turn with the order, where most of its principles may be coins
OWN, OPPOSITE = "question", "opposite"  # the preference question as it is written, and its opposite


@dataclass(frozen=True)
class Judged:
    """The judgements of one comparison. ``by``: (id of a principle, how it is worded) → judgement."""

    by: Mapping[tuple[str, str], Judgement] = field(default_factory=dict)

    def preferred(self, principle_id: str, wording: str = OWN) -> float | None:
        """Its log-odds that reply A is better; 0 if the judgement turns with the order, None without an answer."""
        judgement = self.by.get((principle_id, wording))
        if judgement is None or judgement.logit is None:
            return None
        return 0.0 if judgement.flipped else judgement.logit

    def reads(self, principle_id: str) -> dict[str, bool]:
        """Wording → whether reply A is better, for the wordings under which one of the replies is."""
        found = {w: self.preferred(name, w) for name, w in self.by if name == principle_id}
        return {wording: logit > 0 for wording, logit in found.items() if logit}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Stressed(_Part):
    """One principle on its trade-off requests."""

    id: str
    title: str
    num_judgements: int
    num_unreadable: int
    order_flips: Estimate
    """Judgements in which the same letter wins in both orders; without a value if the labeller shows one reply."""
    wording_flips: Estimate
    """Comparisons on which its wordings prefer different replies, of those that two or more of them decide."""
    opposite_turns: Estimate
    """Comparisons on which the opposite of the principle prefers the other reply, of those that both decide."""


class Counted(_Part):
    """All principles and pairs, and those that stand out. Pairs that decide no comparison both are left out."""

    principles: list[Stressed]
    pairs: list[Pair]
    order_flips: Estimate
    """Of all principles. Two principles judge the same comparison, so the interval is a little too narrow."""
    opposite_turns: Estimate
    decided_by_order: bool
    """Most principles turn with the order as often as a coin might, and so do a third of all judgements; then nothing
    is named."""
    ignores_words: bool
    """The opposite of a principle mostly prefers the same reply; then no near-duplicates are named."""
    contradictions: list[tuple[str, str]] = []
    near_duplicates: list[tuple[str, str]] = []
    only_order: list[str] = []
    """Nothing shows that anything but the order of the replies decides what they prefer."""


def count(judged: Sequence[Judged], titles: Mapping[str, str], confidence: float) -> Counted:
    """Count the judgements of all comparisons.

    A judgement that turns with the order prefers neither reply, so it is in no agreement.

    Args:
        titles: id → title of each principle, in the order of the constitution.
    """
    principles = [_stressed(name, title, judged, confidence) for name, title in titles.items()]
    order = _pooled(principles, lambda rule: rule.order_flips, confidence)
    opposite = _pooled(principles, lambda rule: rule.opposite_turns, confidence)
    coins = [rule.id for rule in principles if _reaches_half(rule.order_flips)]
    by_order = (order.value or 0) >= TOO_MANY and 2 * len(coins) > len(principles)
    preferred = [
        {name: logit for name, wording in row.by if wording == OWN and (logit := row.preferred(name)) is not None}
        for row in judged
    ]
    both = pairs(preferred, list(titles), confidence)
    ignores = opposite.high is not None and opposite.high < 0.5
    return Counted(
        principles=principles,
        pairs=both,
        order_flips=order,
        opposite_turns=opposite,
        decided_by_order=by_order,
        ignores_words=ignores,
        contradictions=[] if by_order else contradictions(both, 1 - confidence),
        near_duplicates=[] if by_order or ignores else near_duplicates(both, LEAST),
        only_order=[] if by_order else [r.id for r in principles if r.id in coins and r.order_flips.total >= LEAST],
    )


def _stressed(name: str, title: str, judged: Sequence[Judged], confidence: float) -> Stressed:
    own = [judgement for row in judged if (judgement := row.by.get((name, OWN))) is not None]
    flipped = [judgement.flipped for judgement in own if judgement.logit is not None and judgement.flipped is not None]
    read = [row.reads(name) for row in judged]
    worded = [sides for row in read if len(sides := [side for how, side in row.items() if how != OPPOSITE]) > 1]
    turned = [row[OWN] != row[OPPOSITE] for row in read if OWN in row and OPPOSITE in row]
    return Stressed(
        id=name,
        title=title,
        num_judgements=len(own),
        num_unreadable=sum(judgement.logit is None for judgement in own),
        order_flips=wilson(sum(flipped), len(flipped), confidence),
        wording_flips=wilson(sum(len(set(sides)) > 1 for sides in worded), len(worded), confidence),
        opposite_turns=wilson(sum(turned), len(turned), confidence),
    )


def _pooled(principles: Sequence[Stressed], part: Callable[[Stressed], Estimate], confidence: float) -> Estimate:
    found = [part(rule) for rule in principles]
    return wilson(sum(e.count or 0 for e in found), sum(e.total for e in found), confidence)


def _reaches_half(flips: Estimate) -> bool:
    """Whether a coin could turn as many: the interval is not below one half."""
    return flips.high is not None and flips.high >= 0.5
