"""Finds near-duplicates, so that slightly reworded training requests don't appear in an evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
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


class NearIndex:
    """Texts by id, in which the closest one to a new text is found."""

    def __init__(self, texts: Mapping[str, str], at_least: float = ALIKE) -> None:
        self._at_least = at_least
        self._known: dict[str, frozenset[str]] = {}
        self._holders: dict[str, list[str]] = defaultdict(list)
        for text_id, text in texts.items():
            self.add(text_id, text)

    def add(self, text_id: str, text: str) -> None:
        self._known[text_id] = shingles(text)
        for part in self._known[text_id]:
            self._holders[part].append(text_id)

    def closest(self, text: str, without: Collection[str] = ()) -> tuple[str, float] | None:
        """(id, similarity) of the closest text, if it is at least as similar as asked; ids in ``without`` don't count.

        A text that is so similar shares a certain number of the sequences, so it has at least one of the rarest ones:
        only the holders of these are compared.
        """
        parts = shingles(text)
        num_rare = len(parts) - int(self._at_least * len(parts)) + 1
        rare = sorted(parts, key=lambda part: (len(self._holders.get(part, ())), part))[:num_rare]
        candidates = {text_id for part in rare for text_id in self._holders.get(part, ())}.difference(without)
        found = [(similarity(parts, self._known[text_id]), text_id) for text_id in candidates]
        how, best = max(found, default=(0.0, ""))
        return (best, how) if found and how >= self._at_least else None


def near_duplicates(
    requests: Mapping[str, str], others: Mapping[str, str], at_least: float = ALIKE
) -> list[NearDuplicate]:
    """The closest of ``others`` for each request with a similarity of ``at_least``; the closest pairs first.

    Args:
        requests, others: id → text.
    """
    index = NearIndex(others, at_least)
    found = [
        NearDuplicate(id=request_id, other_id=near[0], similarity=near[1])
        for request_id, text in requests.items()
        if (near := index.closest(text)) is not None
    ]
    return sorted(found, key=lambda pair: -pair.similarity)
