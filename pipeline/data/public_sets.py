"""Reads public evaluation sets in several layouts.

A layout is detected from its columns (``shape: auto``) or set by name. Malformed rows are dropped, counted and
reported, because a broken line must not stop an evaluation. A file without any readable row is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import ConfigError
from pipeline.data.files import Row, mended_note, rows_of
from pipeline.data.layouts import bias, pairs, requests
from pipeline.data.layouts.pairs import PairRow
from pipeline.data.layouts.requests import RequestRow
from pipeline.records import Message, dialogue_key

RowT = TypeVar("RowT")


@dataclass
class Read:
    """The readable rows, a message per malformed row, and the numbers of duplicate and of mended rows."""

    rows: list[Any] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    num_duplicate: int = 0
    num_mended: int = 0

    def notes(self, name: str) -> list[str]:
        """One sentence if rows were dropped, and one if half characters were replaced."""
        mended = mended_note(name, self.num_mended)
        if not self.malformed and not self.num_duplicate:
            return mended
        where = f" (first: {self.malformed[0].rstrip('.')})" if self.malformed else ""
        return [
            f"{name}: dropped {len(self.malformed)} malformed{where} and {self.num_duplicate} duplicate rows of "
            f"{len(self.rows) + len(self.malformed) + self.num_duplicate}.",
            *mended,
        ]


# shape → (its columns, the function that reads a row)
_SHAPES: dict[str, tuple[frozenset[str], Callable[[Row], Any]]] = {
    "harmbench": (frozenset({"Behavior", "SemanticCategory"}), requests.harmbench),
    "jailbreakbench": (frozenset({"Goal"}), requests.jailbreakbench),
    "advbench": (frozenset({"goal", "target"}), requests.advbench),
    "strongreject": (frozenset({"forbidden_prompt"}), requests.strongreject),
    "xstest": (frozenset({"prompt", "type", "label"}), requests.xstest),
    "hhh_438": (frozenset({"text_correct", "text_incorrect"}), pairs.hhh_438),
    "hhh_targets": (frozenset({"input", "targets"}), pairs.hhh_targets),
    "chosen_rejected": (frozenset({"chosen", "rejected", "prompt"}), pairs.chosen_rejected),
    "dialogues": (frozenset({"chosen", "rejected"}), pairs.dialogues),
    "hh_rlhf": (frozenset({"chosen", "rejected"}), pairs.hh_rlhf),
    "bbq": (frozenset({"context", "question", "answer_info", "label"}), bias.bbq),
    "crows_pairs": (frozenset({"sent_more", "sent_less"}), bias.crows_pairs),
    "prompt": (frozenset({"prompt"}), requests.plain),
}


def shape_of(row: Row, allowed: Sequence[str]) -> str | None:
    """The first allowed layout whose columns are all in a row, or None."""
    possible = [shape for shape, (needed, _) in _SHAPES.items() if shape in allowed and needed <= row.keys()]
    if possible[:1] == ["dialogues"]:  # hh-rlhf has the same columns
        if pairs.holds_turns(row, "chosen"):
            return "dialogues"
        return "hh_rlhf" if isinstance(row["chosen"], str) else None
    return next(iter(possible), None)


def _known_layouts(shapes: Sequence[str]) -> str:
    """``prompt (prompt), advbench (goal, target)``: the layouts, each with its columns."""
    known = {shape: ", ".join(sorted(_SHAPES[shape][0])) for shape in shapes if shape != "auto"}
    return ", ".join(f"{shape} ({columns})" for shape, columns in known.items())


def read_set(name: str, config: Any, builtin: Path, kind: type[RowT]) -> Read:
    """Read the rows of the section called ``name``; all rows are of type ``kind``.

    Raises:
        ConfigError: there is no such file, no known layout, or no readable row.
    """
    read, seen = Read(), set()
    shape = None if config.shape == "auto" else config.shape
    columns = ""
    for place, row, mended in rows_of(name, config, builtin, read.malformed.append):
        columns = columns or ", ".join(map(str, row))[:200]
        if config.limit is not None and len(read.rows) >= config.limit:
            break
        read.num_mended += mended
        shape = shape or shape_of(row, config.shapes)
        try:
            item = _SHAPES[shape or ""][1](row)
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            read.malformed.append(f"{place}: {_reason(error) if shape else 'no known layout'}")
            continue
        key = _key(item)
        if key in seen:
            read.num_duplicate += 1
            continue
        seen.add(key)
        read.rows.append(item)
    if shape is None and columns:
        raise ConfigError(
            f"{name}.path: {config.path} has the columns {columns}, which match none of the layouts "
            f"{_known_layouts(config.shapes)}; rename the columns or set {name}.shape."
        )
    if not read.rows:
        why = f" ({read.malformed[0]})" if read.malformed else ""
        raise ConfigError(f"{name}.path: no row of {config.path} could be read as {shape or 'anything'}{why}.")
    assert isinstance(read.rows[0], kind), f"{shape} gives no {kind.__name__}"
    return read


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no column {error}"
    return str(error) if isinstance(error, ValueError) else "a column holds another kind of value than the layout has"


def _key(item: Any) -> str:
    if isinstance(item, RequestRow):
        return dialogue_key([Message(role="user", content=item.request)])
    if isinstance(item, PairRow):
        return dialogue_key(
            [*item.messages, *(Message(role="assistant", content=t) for t in (item.chosen, item.rejected))]
        )
    return json.dumps(vars(item), sort_keys=True)
