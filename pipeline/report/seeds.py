"""Runs that differ in nothing but the seed: how far apart their measures are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.constitution.schema import Constitution
from pipeline.evals.results import Estimate
from pipeline.report.differences import flat_settings


def seed_groups(configs: Sequence[Mapping[str, Any]], constitutions: Sequence[Constitution | None]) -> list[list[int]]:
    """Indices of the runs whose settings and constitution are the same but for the seed, in groups of two and more.

    Runs with an unknown constitution (None) are in no group, and neither are runs with the same seed.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, (config, constitution) in enumerate(zip(configs, constitutions, strict=True)):
        if constitution is None:
            continue
        others = sorted(f"{name}={value}" for name, value in flat_settings(config).items() if name != "seed")
        groups.setdefault((constitution.model_dump_json(), *others), []).append(index)
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
