"""Rewards with a known optimum, named by tests as ``tests/toy_rewards.py:function``."""

from __future__ import annotations


def short(prompts: list, completions: list[str]) -> list[float]:
    """Highest, 0, for the empty reply."""
    return [-float(len(reply.split())) for reply in completions]


def not_a_number(prompts: list, completions: list[str]) -> list[float]:
    return [float("nan")] * len(completions)


def too_few(prompts: list, completions: list[str]) -> list[float]:
    return [0.0]


def raises(prompts: list, completions: list[str]) -> list[float]:
    raise KeyError("lexicon")


def wordy(prompts: list, completions: list[str]) -> list[float]:
    """Higher for every word."""
    return [float(len(reply.split())) for reply in completions]
