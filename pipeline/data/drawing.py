"""Which prompts a stage asks: always the first by hash, so that more of them never means others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.core import distributed
from pipeline.core.log import warn
from pipeline.records import POOLS, Prompt


def take(prompts: Sequence[Prompt], number: int | None, field_name: str) -> list[Prompt]:
    """The first ``number`` prompts in order of their hash; says so when there are fewer than asked for."""
    if number is not None and number < 1_000_000 and number > len(prompts) and distributed.is_main():
        warn(f"{field_name} is {number} but there are only {len(prompts)} such prompts; all are used.")
    return sorted(prompts, key=lambda prompt: prompt.key)[:number]


def rollout_prompts(prompts: Sequence[Prompt], cfg: Any) -> list[Prompt]:
    """The training prompts that an online method samples replies for."""
    chosen: list[Prompt] = []
    for pool in POOLS:
        of_pool = [prompt for prompt in prompts if prompt.pool == pool and prompt.split == "train"]
        chosen += take(of_pool, getattr(cfg, f"num_{pool}"), f"align.rollout.num_{pool}")
    return chosen


def held_out_prompts(prompts: Sequence[Prompt], cfg: Any) -> list[Prompt]:
    """Prompts of the validation split, in the same proportions of pools as the ones trained on."""
    numbers = {pool: getattr(cfg, f"num_{pool}") for pool in POOLS}
    chosen: list[Prompt] = []
    for pool in POOLS:
        of_pool = [prompt for prompt in prompts if prompt.pool == pool and prompt.split == "validation"]
        number = round(cfg.num_held_out * numbers[pool] / sum(numbers.values()))
        chosen += sorted(of_pool, key=lambda prompt: prompt.key)[:number]
    return chosen
