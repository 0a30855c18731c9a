"""Checks of single settings: each raises one sentence with the field, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pipeline.core.errors import ConfigError, did_you_mean


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, which is not one of {', '.join(allowed)}{_near(value, allowed)}.")


def _near(value: str, allowed: tuple[str, ...]) -> str:
    hint = did_you_mean(str(value), allowed)
    return hint if "did you mean" in hint else ""


def within(name: str, value: float, low: float, high: float = float("inf")) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        limit = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ConfigError(f"{name} is {value:g}; it must be {limit}.")


def sampling(section: str, temperature: float, top_p: float) -> None:
    within(f"{section}.temperature", temperature, 0, 5)
    if not 0 < top_p <= 1:
        raise ConfigError(f"{section}.top_p is {top_p:g}; it must be above 0 and at most 1 (1 switches it off).")
