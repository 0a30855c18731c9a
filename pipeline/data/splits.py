"""The train, validation and test splits, and a check that no evaluated prompt was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pipeline.core.errors import ConfigError
from pipeline.records import Prompt, Split


def split_of(key: str, train_fraction: float, validation_fraction: float) -> Split:
    """The split of a request, by the hash of its ``key`` alone: new prompts never move old ones."""
    position = int.from_bytes(hashlib.sha256(f"split:{key}".encode()).digest()[:8], "big") / 2**64
    if position < train_fraction:
        return "train"
    return "validation" if position < train_fraction + validation_fraction else "test"


def refuse_overlap(evaluated: Iterable[Prompt], trained_keys: dict[str, str]) -> None:
    """Refuse to evaluate on anything that was trained on.

    Args:
        evaluated: the held-out prompts.
        trained_keys: dialogue key → where it was trained on.

    Raises:
        ConfigError: gives the first prompt that is in both.
    """
    for prompt in evaluated:
        if prompt.key in trained_keys:
            raise ConfigError(
                f"held-out prompt {prompt.id} ({prompt.request[:60]!r}) is also trained on, in "
                f"{trained_keys[prompt.key]}; remove it from one of them."
            )
