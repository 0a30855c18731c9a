"""The difference of two texts, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal

Sign = Literal["=", "-", "+"]
Piece = tuple[Sign, str]

_TOKEN = re.compile(r"\w+(?:['’]\w+)*|\s+|[^\w\s]")
_MIN_WORDS = 3  # fewer equal words between two changes are often accidental ("the", "of a"), so they count as changed


def word_diff(before: str, after: str) -> list[Piece]:
    """Return pieces in reading order. The ``=`` and ``-`` pieces joined are ``before``; ``=`` and ``+``, ``after``."""
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    matcher = SequenceMatcher(str.isspace, old, new, autojunk=False)
    pieces: list[Piece] = []
    removed, added = "", ""
    opcodes = matcher.get_opcodes()
    for number, (kind, i1, i2, j1, j2) in enumerate(opcodes):
        inner = 0 < number < len(opcodes) - 1
        if kind == "equal" and not (inner and _num_words(old[i1:i2]) < _MIN_WORDS):
            pieces += _changed(removed, added)
            pieces.append(("=", "".join(old[i1:i2])))
            removed, added = "", ""
        else:
            removed += "".join(old[i1:i2])
            added += "".join(new[j1:j2])
    return pieces + _changed(removed, added)


def _num_words(tokens: list[str]) -> int:
    return sum(token[0].isalnum() for token in tokens)


def _changed(removed: str, added: str) -> list[Piece]:
    pieces: list[Piece] = [("-", removed), ("+", added)]
    return [piece for piece in pieces if piece[1]]
