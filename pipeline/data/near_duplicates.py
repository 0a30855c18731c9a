"""Finds near-duplicates, so that slightly reworded training requests don't appear in an evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.records import normalised

SHINGLE_LETTERS = 5
ALIKE = 0.5
"""Jaccard similarity from which two requests count as near-duplicates (docs/log.md)."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    id: str
    other_id: str
    similarity: float


def shingles(text: str) -> frozenset[str]:
    """All sequences of five characters in the normalised text; a shorter text is one sequence."""
    text = normalised(text)
    return frozenset(text[i : i + SHINGLE_LETTERS] for i in range(max(1, len(text) - SHINGLE_LETTERS + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B| (Jaccard 1901)."""
    return len(one & other) / len(one | other)


def near_duplicates(
    requests: Mapping[str, str], others: Mapping[str, str], at_least: float = ALIKE
) -> list[NearDuplicate]:
    """The closest of ``others`` for each request with a similarity of ``at_least``; the closest pairs first.

    Args:
        requests, others: id → text.
    """
    known = {other_id: shingles(text) for other_id, text in others.items()}
    holders: dict[str, list[str]] = defaultdict(list)
    for other_id, parts in known.items():
        for part in parts:
            holders[part].append(other_id)
    found = []
    for request_id, text in requests.items():
        parts = shingles(text)
        candidates = {other_id for part in parts for other_id in holders.get(part, ())}
        best = max(candidates, key=lambda other_id: (similarity(parts, known[other_id]), other_id), default=None)
        if best is not None and (how := similarity(parts, known[best])) >= at_least:
            found.append(NearDuplicate(id=request_id, other_id=best, similarity=how))
    return sorted(found, key=lambda pair: -pair.similarity)
