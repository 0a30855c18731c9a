"""Reads public sets in several layouts.

A layout is detected from its columns (``shape: auto``) or set by name. Malformed rows are dropped, counted and
reported, because a broken line must not stop an evaluation. A file without any readable row is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.data.files import Line, mended_note, rows_of
from pipeline.data.first_by_hash import FirstByHash
from pipeline.data.formats import Row
from pipeline.data.layouts.base import NEIGHBOURS, UNREADABLE, AmbiguousLayoutError, Layout, Layouts, TieError, reason
from pipeline.data.layouts.pairs import PairRow
from pipeline.data.layouts.requests import RequestRow
from pipeline.records import Message, dialogue_key

AUTO = "auto"


@dataclass
class Read:
    """The readable rows, what could not be used, and the number of mended rows."""

    rows: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Of each row: how many readable ones came before it."""
    num_readable: int = 0
    """Neighbours that are read together count once here, and each in all other numbers."""
    num_used: int = 0
    num_malformed: int = 0
    first_malformed: str = ""
    """Where the first malformed row is, and why it is one."""
    num_ties: int = 0
    num_duplicate: int = 0
    num_mended: int = 0

    def add_malformed(self, problem: str, num_rows: int = 1) -> None:
        self.num_malformed += num_rows
        self.first_malformed = self.first_malformed or problem

    def notes(self, name: str) -> list[str]:
        """One sentence if rows were dropped, and one if half characters were replaced."""
        mended = mended_note(name, self.num_mended)
        num_dropped = self.num_malformed + self.num_ties + self.num_duplicate
        if not num_dropped:
            return mended
        where = f" (first: {self.first_malformed.rstrip('.')})" if self.num_malformed else ""
        ties = f", {self.num_ties} without a better reply" if self.num_ties else ""
        return [
            f"{name}: dropped {self.num_malformed} malformed{where}{ties} and {self.num_duplicate} duplicate rows of "
            f"{self.num_used + num_dropped}.",
            *mended,
        ]


def num_rows(row: Row) -> int:
    """How many rows of a file a row stands for: more than one where neighbours are read together."""
    return len(row.get(NEIGHBOURS, [row]))


def detected(field: str, place: Any, row: Row, layouts: Layouts[Any], names: Collection[str]) -> Layout[Any] | None:
    """The layout of a row, or None.

    Args:
        field: the section that names the file, and ``place`` the file, for messages.

    Raises:
        ConfigError: several layouts are possible.
    """
    try:
        return layouts.of(row, names)
    except AmbiguousLayoutError as error:
        raise ConfigError(
            f"{field}.path: {place} has the columns {_columns(row)}, which match the layouts {error}; remove the "
            "columns of all but one."
        ) from None


def read_together(lines: Iterable[Line], column: str | None) -> Iterator[Line]:
    """Neighbouring lines with the same value in a column as one line: the first, with all rows in ``NEIGHBOURS``."""
    if column is None:
        yield from lines
        return

    def value(line: Line) -> str:
        found = line.row.get(column)
        return found if isinstance(found, str) else line.place  # a row without text stands alone

    for _, group in groupby(lines, key=value):
        first, *others = group
        rows = [first.row, *(line.row for line in others)]
        yield Line(first.place, first.row | {NEIGHBOURS: rows}, any(line.mended for line in (first, *others)))


def read_set(name: str, config: Any, builtin: Path, kind: type, number: int | None = None) -> Read:
    """Read the rows of the section called ``name``; all rows are of type ``kind``.

    Args:
        config: a ``RowsConfig``.
        number: keep only so many: the first by the hash of their request, in one pass over the file; None: all. Of
            duplicates, only those of rows that are kept are then counted.

    Raises:
        ConfigError: there is no such file, no known layout, or no readable row.
    """
    read = Read()
    lines: Iterator[Line] = rows_of(name, config, builtin, read.add_malformed)
    if config.shape == AUTO:
        layout, lines = _detect(name, config, lines, read)
    else:
        layout = config.layouts[config.shape]
    kept: FirstByHash[tuple[int, Any]] = FirstByHash(number)
    for place, row, mended in read_together(lines, layout.together if layout else None):
        if config.limit is not None and read.num_readable >= config.limit:
            break
        read.num_mended += mended
        assert layout is not None
        try:
            item = layout.read(row)
        except TieError:
            read.num_ties += num_rows(row)
            continue
        except UNREADABLE as error:
            read.add_malformed(f"{place}: {reason(error)}", num_rows(row))
            continue
        key = _key(item)
        if key in kept:
            read.num_duplicate += num_rows(row)
            continue
        kept.add(key, (read.num_readable, item))
        read.num_readable += 1
        read.num_used += num_rows(row)
    for place_in_file, item in sorted(kept.items().values(), key=lambda pair: pair[0]):
        read.rows.append(item)
        read.numbers.append(place_in_file)
    if not read.rows:
        why = f" ({read.first_malformed})" if read.num_malformed else ""
        if read.num_ties:
            why = f" ({read.num_ties} rows say of no reply that it is better){why}"
        raise ConfigError(
            f"{name}.path: no row of {config.path} could be read as {layout.name if layout else 'anything'}{why}."
        )
    assert isinstance(read.rows[0], kind), f"{config.shape} gives no {kind.__name__}"
    return read


def _detect(name: str, config: Any, lines: Iterator[Line], read: Read) -> tuple[Layout[Any] | None, Iterator[Line]]:
    """The layout of the first row that has one, and the rows from there on. Rows before it are malformed."""
    columns = ""
    for line in lines:
        columns = columns or _columns(line.row)
        if layout := detected(name, config.path, line.row, config.layouts, config.shapes):
            return layout, chain([line], lines)
        read.num_mended += line.mended
        read.add_malformed(f"{line.place}: no known layout")
    if columns:
        raise ConfigError(
            f"{name}.path: {config.path} has the columns {columns}, which match none of the layouts "
            f"{config.layouts.described(config.shapes)}; rename the columns or set {name}.shape."
        )
    return None, lines


def _columns(row: Row) -> str:
    return ", ".join(map(str, row))[:200]


def _key(item: Any) -> str:
    """What two equal rows share. Rows are ordered by it: those about one request stand together."""
    if isinstance(item, RequestRow):
        return dialogue_key(item.messages)
    if isinstance(item, PairRow):
        replies = [Message(role="assistant", content=text) for text in (item.chosen, item.rejected)]
        return dialogue_key(item.messages) + dialogue_key([*item.messages, *replies])
    return json.dumps(vars(item), sort_keys=True)
