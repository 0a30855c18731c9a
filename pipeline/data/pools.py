"""The requests of one pool, read by the columns that are set, or in the layout of a public set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.json_text import NotJsonError
from pipeline.data.files import Line, rows_of
from pipeline.data.formats import Row
from pipeline.data.layouts.base import UNREADABLE, Layout, reason
from pipeline.data.layouts.requests import REQUESTS, RequestRow
from pipeline.data.public_sets import detected
from pipeline.data.sources import ColumnsConfig, PoolConfig
from pipeline.data.transcripts import parse_transcript, up_to_last_request
from pipeline.data.turns import is_dialogue, parse_turns
from pipeline.records import Message, Pool

BUILTIN_COLUMNS = ColumnsConfig(kind="kind", id="id", manner="manner", twin_of="twin_of")
PUBLIC = tuple(name for name in REQUESTS if name != "prompt")
"""Layouts that are detected; a file with a column ``prompt`` alone is read by the columns that are set."""


@dataclasses.dataclass
class Unused:
    """How many rows of a pool could not be used, or were mended."""

    layout: str = ""
    """The layout of a public set that was detected; "" if the columns are those of the settings."""
    num_empty: int = 0
    num_duplicate: int = 0
    num_mended: int = 0
    num_malformed: int = 0
    first_malformed: str = ""
    num_other_class: int = 0
    """Rows that the set labels as harmless, in the pool of harmful requests, or as harmful, in another pool."""
    columns: dict[str, None] = dataclasses.field(default_factory=dict)
    """The columns of all rows that were read, in order."""

    def notes(self, field: str) -> list[str]:
        """Sentences about dropped rows. ``field``: the section of the pool."""
        found = []
        if self.num_empty or self.num_duplicate:
            found.append(f"{field}: dropped {self.num_empty} empty and {self.num_duplicate} duplicate rows.")
        if self.num_malformed:
            found.append(
                f"{field}: dropped {self.num_malformed} rows that are not as the layout {self.layout} says (first: "
                f"{self.first_malformed.rstrip('.')})."
            )
        if self.num_other_class:
            found.append(f"{field}: left out {self.num_other_class} rows that the set labels as {self._other(field)}.")
        return found

    def refuse_nothing(self, field: str, path: Any) -> None:
        """Raises ConfigError if no row of a public set could be used. To be called if none was."""
        if not (self.num_malformed or self.num_other_class):
            return
        remedy = (
            f"To read plain columns instead, set {field}.columns.prompt=COLUMN, or {field}.columns.kind=COLUMN if the "
            "requests are in the column prompt."
            if self.num_malformed
            else "Give the file to another pool."
        )
        raise ConfigError(
            f"{field}.path: no row of {path} can be used as a request in the layout {self.layout}. "
            f"{' '.join(self.notes(field))} {remedy}"
        )

    def _other(self, field: str) -> str:
        return "harmless" if field.endswith("red_team") else "harmful"


def pool_requests(pool: Pool, source: PoolConfig, builtin: Path, unused: Unused) -> Iterator[RequestRow]:
    """The requests of a pool, in the order of its rows.

    A layout of a public set is looked for if no column is set. Its rows that can't be read are counted in ``unused``.

    Raises:
        ConfigError: the wrong file, line or column, and the remedy.
    """
    field = f"data.{pool}"
    lines: Iterator[Line] = rows_of(field, source, builtin)
    if source.source == "builtin":
        return _by_columns(lines, BUILTIN_COLUMNS, field, unused)
    first = next(lines, None)
    if first is None:
        return iter(())
    lines = chain([first], lines)
    if source.columns == ColumnsConfig() and (layout := detected(field, source.path, first.row, REQUESTS, PUBLIC)):
        unused.layout = layout.name
        return _by_layout(lines, layout, pool, unused)
    return _by_columns(lines, source.columns, field, unused)


def refuse_absent(field: str, source: PoolConfig, unused: Unused) -> None:
    """Refuse a column that is named in the settings and that no row has. ``field``: the section of the columns."""
    for name in ("kind", "id", "manner", "twin_of"):
        column = getattr(source.columns, name)
        if column is not None and (known := list(unused.columns)) and column not in known:
            raise ConfigError(f"{field}.{name} is {column!r}, but no row has that column{did_you_mean(column, known)}.")


def _by_layout(lines: Iterable[Line], layout: Layout[RequestRow], pool: Pool, unused: Unused) -> Iterator[RequestRow]:
    for place, row, mended in lines:
        unused.num_mended += mended
        try:
            request = layout.read(row)
        except UNREADABLE as error:
            unused.num_malformed += 1
            unused.first_malformed = unused.first_malformed or f"{place}: {reason(error)}"
            continue
        if request.harmless is not None and request.harmless == (pool == "red_team"):
            unused.num_other_class += 1
            continue
        yield request


def _by_columns(lines: Iterable[Line], columns: ColumnsConfig, field: str, unused: Unused) -> Iterator[RequestRow]:
    for place, row, mended in lines:
        unused.columns |= dict.fromkeys(row)
        unused.num_mended += mended
        messages = _messages(row, columns, place, field)
        if not messages:
            unused.num_empty += 1
            continue
        *before, last = messages
        yield RequestRow(
            id=_label(row, columns.id),
            request=last["content"],
            before=tuple(before),
            kind=_label(row, columns.kind) or "unspecified",
            manner=_label(row, columns.manner),
            twin_of=_label(row, columns.twin_of),
        )


def _label(row: Row, column: str | None) -> str:
    """The text in a column; "" without the column or without text."""
    return str(row[column]) if column and row.get(column) else ""


def _messages(row: Row, columns: ColumnsConfig, place: str, field: str) -> list[Message]:
    """The prompt of a row as a dialogue that ends with the person's turn; empty if there is no request."""
    kind = next(kind for kind in ("messages", "transcript", "prompt") if getattr(columns, kind) is not None)
    column = getattr(columns, kind)
    if column not in row:
        raise ConfigError(
            f"{place}: there is no column {column!r} (columns.{kind}){_other_column(column, row, field)}."
        )
    value = row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if kind == "messages":
        try:
            return up_to_last_request(parse_turns(value))
        except ValueError as error:
            raise ConfigError(f"{place}: column {column!r} {_turns_problem(error)}.") from None
    if is_dialogue(value):
        raise ConfigError(
            f"{place}: column {column!r} holds a list of turns, but columns.{kind} is for text; set "
            f"{field}.columns.messages={column}."
        )
    if not isinstance(value, str):
        raise ConfigError(f"{place}: column {column!r} holds a {type(value).__name__}; text is expected.")
    if kind == "prompt":
        return [Message(role="user", content=value.strip())]
    try:
        return up_to_last_request(parse_transcript(value))
    except ValueError as error:
        raise ConfigError(f"{place}: column {column!r} is not a transcript: {error}.") from None


def _other_column(column: str, row: Row, field: str) -> str:
    """What to set instead of a column that a row does not have."""
    dialogues = [name for name, value in row.items() if is_dialogue(value)]
    if dialogues:
        return f"; column {dialogues[0]!r} holds a list of turns: set {field}.columns.messages={dialogues[0]}"
    layouts = REQUESTS.described(PUBLIC)
    return f"{did_you_mean(column, row)}. Layouts that need no setting: {layouts}"


def _turns_problem(error: ValueError) -> str:
    """What is wrong with a column of turns, as the end of a sentence that begins with the column."""
    return f"is text but {error}" if isinstance(error, NotJsonError) else str(error)
