"""The families of attacks that a guard learns from: those of the fixed attacks."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.evals.suites.attacks import ATTACKS
from pipeline.evals.suites.families import FAMILY, is_trained_on
from pipeline.records import Message, Prompt

FAMILIES = sorted(set(FAMILY.values()))
LEARNED = [family for family in FAMILIES if is_trained_on(family)]
"""The families that the guard learns from by default, by the hash of the name: nobody chose them by their results."""


def family_of(attack: str) -> str:
    """The family of an attack; an attack that is in none is a family of its own."""
    return FAMILY.get(attack, attack)


def attacks_of(families: Collection[str]) -> list[str]:
    """The attacks of these families, in the order of the suite."""
    return [attack for attack in ATTACKS if family_of(attack) in families]


def attacked(prompt: Prompt, attack: str) -> list[Message]:
    """The turns of a prompt under an attack, which changes only the last one. It may add the start of a reply."""
    return [*prompt.messages[:-1], *ATTACKS[attack](prompt.request)]
