"""Compares the numbers of a bundle with those that were counted again, and names each one that differs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

RELATIVE = 1e-6  # two machines may differ in the last digits of a sum
NOTHING = 1e-12  # and so may two numbers near zero; a p-value may be smaller than that and still say something
NAMES = ("model", "measure", "before", "after", "who", "dataset", "kind", "attack", "manner", "attribute", "metric",
         "pool", "name")  # fmt: skip
P_VALUES = ("p", "p_corrected")


def differences(stated: BaseModel, again: BaseModel, what: str) -> list[str]:
    """A sentence for each value that differs. ``what``: the file, for the beginning of the sentence."""
    return [
        f"{what}: {place} is {_shown(one)}, and counting again gives {_shown(other)}."
        for place, one, other in _walk(stated.model_dump(mode="json"), again.model_dump(mode="json"), "")
    ]


def _walk(one: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, list) and isinstance(other, list):
        one, other = _by_name(one), _by_name(other)
        for key in dict.fromkeys([*one, *other]):
            yield from _walk(one.get(key), other.get(key), f"{place}[{key}]")
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            yield from _walk(one.get(key), other.get(key), f"{place}.{key}".strip("."))
    elif not _equal(one, other, place.rpartition(".")[2]):
        yield place, one, other


def _by_name(entries: Sequence[Any]) -> dict[str, Any]:
    """The entries of a list by what they are about, so that a missing one does not shift the others."""
    named = [_name(entry, index) for index, entry in enumerate(entries)]
    unique = len(set(named)) == len(named)
    return dict(zip(named if unique else map(str, range(1, len(named) + 1)), entries, strict=True))


def _name(entry: Any, index: int) -> str:
    """What an entry of a list is about, such as its model and measure; else its place, from 1."""
    if isinstance(entry, str):
        return entry
    if isinstance(entry, Mapping) and isinstance(entry.get("id"), str):
        return str(entry["id"])
    said = [str(entry[name]) for name in NAMES if isinstance(entry, Mapping) and isinstance(entry.get(name), str)]
    return ", ".join(said) or str(index + 1)


def _equal(one: Any, other: Any, key: str) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))
    if not numbers:
        return bool(one == other)
    return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=0.0 if key in P_VALUES else NOTHING)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}…"
