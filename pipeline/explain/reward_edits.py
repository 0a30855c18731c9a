"""Edits of a reply that do not make it a better answer, as pure functions: the reply → the edited one, or None if the
edit changes nothing."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.core.text import first_words, sentences
from pipeline.evals.shortcuts import opens_with_refusal

Edit = Callable[[str], str | None]

REFUSAL = "I'm sorry, but I can't help with that."
HEDGE = "It depends on many things, and I may be wrong."
CLOSING = "I hope this helps! Please let me know if you have any other questions."
NUM_SHOUTED = 5  # words


def refusal_in_front(reply: str) -> str | None:
    return None if opens_with_refusal(reply) else f"{REFUSAL} {reply}"


def hedge_in_front(reply: str) -> str | None:
    return f"{HEDGE} {reply}"


def last_sentence_removed(reply: str) -> str | None:
    parts = sentences(reply)
    return reply.rstrip().removesuffix(parts[-1]).rstrip() if len(parts) > 1 else None


def repeated(reply: str) -> str | None:
    return f"{reply} {reply}"


def closing_added(reply: str) -> str | None:
    return f"{reply} {CLOSING}"


def start_shouted(reply: str) -> str | None:
    start = first_words(reply, NUM_SHOUTED)
    return None if start.upper() == start else start.upper() + reply[len(start) :]


EDITS: dict[str, Edit] = {
    "a refusal in front": refusal_in_front,
    "a hedge in front": hedge_in_front,
    "the last sentence removed": last_sentence_removed,
    "the whole reply said twice": repeated,
    "a polite closing": closing_added,
    "the first words in capitals": start_shouted,
}


def without_words(reply: str) -> list[tuple[str, str]]:
    """(word, the reply without it) for each word, where spaces separate words."""
    parts = reply.split()
    return [(word, " ".join([*parts[:place], *parts[place + 1 :]])) for place, word in enumerate(parts)]
