"""Runs that differ in nothing but the seed: how far apart their measures are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evals.results import Estimate
from pipeline.report.differences import flat_settings


def seed_groups(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Indices of the runs whose settings are the same but for the seed, in groups of two and more runs."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, config in enumerate(configs):
        others = {name: value for name, value in flat_settings(config).items() if name != "seed"}
        groups.setdefault(tuple(sorted(others.items())), []).append(index)
    return [
        group
        for group in groups.values()
        if len({flat_settings(configs[index]).get("seed") for index in group}) == len(group) > 1
    ]


def over_seeds(estimates: Sequence[Estimate | None]) -> list[str] | None:
    """Mean, lowest and highest value, and the standard deviation (of a sample); None if a run has no value."""
    values = [one.value for one in estimates if one is not None and one.value is not None]
    if len(values) < len(estimates):
        return None
    shares = all(one is not None and one.count is not None for one in estimates)
    found = (statistics.fmean(values), min(values), max(values), statistics.stdev(values))
    return [f"{100 * value:.0f} %" if shares else f"{value:.3g}" for value in found]
