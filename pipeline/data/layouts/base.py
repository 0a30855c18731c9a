"""How the layout of a public data set is recognised by its columns, and helpers for the functions that read a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.data.formats import Row

RowT = TypeVar("RowT")
ReadT = TypeVar("ReadT", bound=Callable[[Row], Any])
NEIGHBOURS = "neighbours"
"""Where a layout with ``together`` finds the rows that are read together."""


class TieError(ValueError):
    """No reply is better than the other, so the row is no pair."""


class AmbiguousLayoutError(ValueError):
    """A row has the columns of several layouts, and none of these is a special case of another."""


UNREADABLE = (KeyError, ValueError, TypeError, IndexError, AttributeError)
"""What a reading function raises for a row that is not as its layout says."""


@dataclass(frozen=True, kw_only=True)
class Layout(Generic[RowT]):
    """The columns that a row must have, and the function that reads it."""

    name: str
    columns: frozenset[str]
    read: Callable[[Row], RowT]
    fits: Callable[[Row], bool] = lambda row: True
    """What else tells the layout."""
    detected: bool = True
    """False: only a setting that names it selects it."""
    together: str | None = None
    """A column. Neighbouring rows with the same value in it are read as one: the first, with all in ``NEIGHBOURS``."""

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(sorted(self.columns))})"


class Layouts(Generic[RowT]):
    """The layouts that give one kind of row. To add one, write ``@KIND.add(name, *columns)`` above its function."""

    def __init__(self) -> None:
        self._layouts: dict[str, Layout[RowT]] = {}

    def add(self, name: str, *columns: str, **options: Any) -> Callable[[ReadT], ReadT]:
        """Register a function. It raises ValueError for a row that can't be read and TieError for one without a choice.

        Args:
            options: fields of ``Layout``.
        """

        def register(read: ReadT) -> ReadT:
            assert name not in self._layouts, f"two layouts are called {name!r}"
            self._layouts[name] = Layout(name=name, columns=frozenset(columns), read=read, **options)
            return read

        return register

    def __getitem__(self, name: str) -> Layout[RowT]:
        return self._layouts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def of(self, row: Row, names: Collection[str]) -> Layout[RowT] | None:
        """The layout of a row, among those in ``names``; None if no one's columns are all there.

        If the columns of one layout are part of another's, the one with more columns is meant.

        Raises:
            AmbiguousLayoutError: several are possible.
        """
        known = [layout for name, layout in self._layouts.items() if name in names and layout.detected]
        possible = [layout for layout in known if layout.columns <= row.keys() and layout.fits(row)]
        best = [layout for layout in possible if not any(layout.columns < other.columns for other in possible)]
        if len(best) > 1:
            raise AmbiguousLayoutError(" and ".join(map(str, best)))
        return best[0] if best else None

    def described(self, names: Collection[str]) -> str:
        """``prompt (prompt), advbench (goal, target)``: the layouts, each with its columns."""
        return ", ".join(str(layout) for name, layout in self._layouts.items() if name in names)


def reason(error: Exception) -> str:
    """Why a row could not be read, as a clause."""
    if isinstance(error, KeyError):
        return f"no column {error}"
    return str(error) if isinstance(error, ValueError) else "a column holds another kind of value than the layout has"


def number_of(row: Row, column: str) -> float:
    """A number, which a table may have as text. Raises KeyError without the column, ValueError without a number."""
    value = row[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"column {column!r} is {str(value)[:40]!r}, not a number")
    return number


def flag_of(row: Row, column: str) -> bool:
    """True or false, which a table may have as text. Raises KeyError without the column, ValueError for others."""
    value = str(row[column]).casefold()
    if value not in {"true", "false"}:
        raise ValueError(f"column {column!r} is {str(row[column])[:40]!r}, not true or false")
    return value == "true"
