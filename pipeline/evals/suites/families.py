"""Families of attacks, and their split into those that train and those that evaluate: one for guard and adversary."""

from __future__ import annotations

from pipeline.records import derive_seed

PREFILL = "prefill"
FAMILY: dict[str, str] = {
    "persona": "persona",
    "fiction": "fiction",
    "refusal_suppression": "refusal_suppression",
    "prefix_injection": PREFILL,
    "past_tense": "tense",
    "misspelling": "noise",
    "base64": "encoding",
    "rot13": "encoding",
    "system_override": "system_override",
    "many_shot": "many_shot",
    "escalation": "escalation",
}
"""Fixed attack → its family. The adversary adds transforms to these families, and families of its own."""

_SALT = 2  # of the split; the first one that makes halves, with the given beginnings among those that evaluate


def is_trained_on(family: str) -> bool:
    """On which side of the split a family is, by the hash of its name. A new family moves no other one."""
    return derive_seed("families", _SALT, family) % 2 == 0
