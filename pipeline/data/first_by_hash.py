"""A sample of many rows in one pass, without the others in memory."""

from __future__ import annotations

from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class FirstByHash(Generic[ItemT]):
    """Keeps the items with the smallest keys: a bottom-k sample (Cohen and Kaplan 2007, doi 10.1145/1281100.1281133).

    Keys are hashes, so the sample is random, and it is a function of the set of keys alone: neither the order of the
    items nor their division into files changes it, and a larger sample holds a smaller one. At most twice as many
    items as asked for are in memory.

    Args:
        number: how many to keep; None: all.
    """

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._items: dict[str, ItemT] = {}
        self._largest: str | None = None
        """The largest key that can be in the sample; None: any can."""

    def __contains__(self, key: str) -> bool:
        """Whether an item with this key is in memory."""
        return key in self._items

    def wants(self, key: str) -> bool:
        """Whether an item with this key may be in the sample, as far as is known now."""
        return self._largest is None or key <= self._largest

    def add(self, key: str, item: ItemT) -> None:
        """Keep an item if it is wanted.

        Args:
            key: a hash in hexadecimal digits. An item with the same key is replaced.
        """
        if self.wants(key):
            self._items[key] = item
            if self._number is not None and len(self._items) >= 2 * self._number:
                self._items = dict(self._first())
                self._largest = max(self._items)

    def items(self) -> dict[str, ItemT]:
        """Key → item: all in the order in which they came, or the first by key if a number was given."""
        return dict(self._items if self._number is None else self._first())

    def _first(self) -> list[tuple[str, ItemT]]:
        return [(key, self._items[key]) for key in sorted(self._items)[: self._number]]
