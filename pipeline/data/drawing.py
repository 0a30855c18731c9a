"""Which prompts a stage uses: always the first by hash, so a larger number only adds prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field

from pipeline.core import distributed
from pipeline.core.log import warn
from pipeline.core.settings import Settings
from pipeline.data.counterfactuals import CounterfactualSet
from pipeline.records import POOLS, Prompt

ALL = 1_000_000  # presets use it for "all prompts"


class PoolSizes(Settings):
    """How many training prompts of each pool a stage uses."""

    num_red_team: int = Field(ge=0)
    """Harmful requests."""
    num_ordinary: int = Field(ge=0)
    """Ordinary requests."""
    num_look_alike: int = Field(ge=0)
    """Harmless requests that look harmful."""

    def by_pool(self, prompts: Iterable[Prompt], section: str = "") -> dict[str, list[Prompt]]:
        """Pool → its first training prompts by hash.

        Args:
            section: the path of these settings; if given, warn when a pool has fewer prompts than requested.
        """
        training = sorted((prompt for prompt in prompts if prompt.split == "train"), key=lambda prompt: prompt.key)
        chosen: dict[str, list[Prompt]] = {}
        for pool in POOLS:
            number, known = getattr(self, f"num_{pool}"), [prompt for prompt in training if prompt.pool == pool]
            chosen[pool] = known[:number]
            if section and len(known) < number < ALL and distributed.is_main():
                warn(f"{section}.num_{pool} is {number} but there are only {len(known)} such prompts; all are used.")
        return chosen

    def training_prompts(self, prompts: Iterable[Prompt], section: str = "") -> list[Prompt]:
        """The prompts of ``by_pool`` in one list."""
        return [prompt for pool in self.by_pool(prompts, section).values() for prompt in pool]

    @property
    def num_prompts(self) -> int:
        return self.num_red_team + self.num_ordinary + self.num_look_alike


def rollout_prompts(
    prompts: Sequence[Prompt], config: PoolSizes, sets: Sequence[CounterfactualSet] = ()
) -> list[Prompt]:
    """The training prompts that a policy-gradient method samples replies for, then those of counterfactual ``sets``."""
    return config.training_prompts(prompts, "align.rollout") + [prompt for each in sets for prompt in each.prompts]


def held_out_prompts(prompts: Sequence[Prompt], config: Any) -> list[Prompt]:
    """About ``config.num_held_out`` prompts of the validation split, with the pool proportions of the training."""
    chosen: list[Prompt] = []
    for pool in POOLS:
        of_pool = [prompt for prompt in prompts if prompt.pool == pool and prompt.split == "validation"]
        number = round(config.num_held_out * getattr(config, f"num_{pool}") / config.num_prompts)
        chosen += sorted(of_pool, key=lambda prompt: prompt.key)[:number]
    return chosen
