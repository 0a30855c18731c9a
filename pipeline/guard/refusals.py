"""What a guard says in place of a reply."""

from __future__ import annotations

from pipeline.constitution.schema import Constitution
from pipeline.guard.config import GuardConfig

PLAIN = ("I won't", "I can't", "I cannot", "I will not")
"""Openings after which "help with that." makes a sentence."""


def refusal_of(config: GuardConfig, constitution: Constitution) -> str:
    """``guard.refusal``, or the opening of the constitution's refusals with a plain end, or, if they don't begin alike,
    the shortest of them."""
    if config.refusal is not None:
        return config.refusal
    opening = constitution.opening()
    declined = [reply for _, reply in constitution.declined([], len(constitution.contrasts) + 100)]
    if opening in PLAIN or not declined:
        return f"{opening or PLAIN[0]} help with that."
    return min(declined, key=len)
