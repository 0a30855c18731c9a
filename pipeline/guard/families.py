"""Families of attacks: relatives that a guard would take for each other are in one family."""

from __future__ import annotations

from collections.abc import Collection

from pipeline.evals.suites.attacks import ATTACKS
from pipeline.records import Message, Prompt, derive_seed

FAMILIES: dict[str, tuple[str, ...]] = {
    "roles": ("persona", "fiction"),
    "instructions": ("refusal_suppression", "system_override"),
    "beginnings": ("prefix_injection",),
    "rewordings": ("past_tense", "misspelling"),
    "encodings": ("base64", "rot13"),
    "turns": ("many_shot", "escalation"),
}
LEARNED = sorted(sorted(FAMILIES, key=lambda name: derive_seed("guard", name))[: len(FAMILIES) // 2])
"""The half that the guard learns from by default, by the hash of the name: nobody chose it by its results."""


def family_of(attack: str) -> str:
    """The family of an attack; an attack that is in none is a family of its own."""
    return next((name for name, attacks in FAMILIES.items() if attack in attacks), attack)


def attacks_of(families: Collection[str]) -> list[str]:
    """The attacks of these families, in the order of the suite."""
    return [attack for attack in ATTACKS if family_of(attack) in families]


def attacked(prompt: Prompt, attack: str) -> list[Message]:
    """The turns of a prompt under an attack, which changes only the last one. It may add the start of a reply."""
    return [*prompt.messages[:-1], *ATTACKS[attack](prompt.request)]
