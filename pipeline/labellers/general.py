"""General refusals and answers in several languages, for constitutions that have none of their own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from pipeline.core.text import words

FALLBACK = "English"


class Examples(NamedTuple):
    """(request, reply) pairs."""

    refusals: list[tuple[str, str]]
    answers: list[tuple[str, str]]


@cache
def general_examples() -> dict[str, Examples]:
    """Language → examples in it."""
    raw = yaml.safe_load((Path(__file__).parent / "examples.yaml").read_text(encoding="utf-8"))
    return {
        language: Examples(*([(request, reply) for request, reply in kinds[name]] for name in Examples._fields))
        for language, kinds in raw.items()
    }


@cache
def _words_by_language() -> dict[str, frozenset[str]]:
    return {
        language: frozenset(word for pairs in examples for pair in pairs for text in pair for word in words(text))
        for language, examples in general_examples().items()
    }


@cache
def language_of(*texts: str) -> str:
    """The language whose examples share most words with the first text; the next text decides where that says nothing.

    It knows only the languages of the examples, and gives ``FALLBACK`` for others.
    """
    for text in texts:
        found = words(text)
        counts = {language: sum(word in known for word in found) for language, known in _words_by_language().items()}
        best = max(counts.values())
        likeliest = [language for language, count in counts.items() if count == best]
        if best and len(likeliest) == 1:
            return likeliest[0]
    return FALLBACK
