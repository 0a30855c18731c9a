"""Rows of tokens as a tree: what several rows begin with is computed once, and nothing is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipeline.engines.prefix import continues_exactly, difference_from_single_rows, probe_rows

MOST_TOKENS = 512  # of a tree: every token is compared with every other, which outweighs the rest in larger trees


class TokenTree:
    """Rows of tokens, laid out in one row of a forward pass. A token stands there once for all rows that are equal up
    to it, and it reads only the tokens before it in these rows.

    Args:
        rows: token ids.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}
        self._places = [self._add(row) for row in rows]

    def _add(self, row: Sequence[int]) -> list[int]:
        places, parent = [], -1
        for depth, token in enumerate(row):
            if (parent, token) not in self._children:
                self._children[parent, token] = len(self.tokens)
                self.tokens.append(token)
                self._parents.append(parent)
                self._depths.append(depth)
            parent = self._children[parent, token]
            places.append(parent)
        return places

    def places(self, width: int) -> torch.Tensor:
        """Where the tokens of each row are in the tree: (rows, width); 0 after the end of a row."""
        return torch.tensor([places + [0] * (width - len(places)) for places in self._places])

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """Arguments of a forward pass of one row: its logits are (1, tokens of the tree, vocabulary)."""
        size = len(self.tokens)
        reads = torch.eye(size, dtype=torch.bool)
        for place, parent in enumerate(self._parents):  # a parent comes before its children
            if parent >= 0:
                reads[place] |= reads[parent]
        return {
            "input_ids": torch.tensor([self.tokens], device=device),
            "position_ids": torch.tensor([self._depths], device=device),
            "attention_mask": reads[None, None].to(device),
            "use_cache": False,
        }


def trees(rows: Sequence[Sequence[int]], most: int | None = MOST_TOKENS) -> Iterator[tuple[list[int], TokenTree]]:
    """Divide rows into trees of at most ``most`` tokens (None: one tree); a longer row has a tree of its own.

    Yields:
        the numbers of its rows, and a tree. Rows with a common beginning come together.
    """
    chosen: list[int] = []
    size = 0
    for number in sorted(range(len(rows)), key=lambda number: list(rows[number])):
        added = len(rows[number]) - (_num_common(rows[chosen[-1]], rows[number]) if chosen else 0)
        if chosen and most is not None and size + added > most:
            yield chosen, TokenTree([rows[row] for row in chosen])
            chosen, size, added = [], 0, len(rows[number])
        chosen.append(number)
        size += added
    if chosen:
        yield chosen, TokenTree([rows[row] for row in chosen])


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens that two rows begin with."""
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def reads_trees(model: Any) -> bool:
    """Whether the model computes a tree of rows as it computes each row alone.

    It needs full attention in every layer, a mask for each pair of tokens, and positions that are given.

    Args:
        model: as in ``shares_prefixes``.
    """
    return continues_exactly(model, "tree", _tree_error)


def _tree_error(model: Any) -> float:
    """How far a tree of rows is from each row alone, in nats."""
    rows = probe_rows(model)
    tree = TokenTree(rows)
    logits = model(**tree.inputs(next(model.parameters()).device)).logits[0]
    ends = [int(places[len(row) - 1]) for row, places in zip(rows, tree.places(max(map(len, rows))), strict=True)]
    return difference_from_single_rows(model, rows, logits[ends])
