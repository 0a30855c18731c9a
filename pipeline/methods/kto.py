"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306): single replies, wanted or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context, Cost, Metrics, Prepared
from pipeline.methods.base import METHODS, History, num_steps
from pipeline.methods.pairs import PairConfig, PairMethod


@METHODS.add
class KTO(PairMethod):
    """The better reply of a comparison is wanted, the other is not."""

    name = "kto"

    class Config(PairConfig):
        """Kahneman-Tversky optimisation."""

        method: Literal["kto"] = "kto"
        """Kahneman-Tversky optimisation."""

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        """TRL estimates the KL from a prompt with its neighbour's completion, so a device needs two rows at once."""
        from pipeline.training.models import largest_divisor, rows_a_device_holds

        launch = prepared.config.launch
        if largest_divisor(config.global_batch_size // launch.num_processes, rows_a_device_holds(launch)) < 2:
            raise ConfigError(
                f"align.global_batch_size is {config.global_batch_size} over launch.num_processes="
                f"{launch.num_processes}, which leaves a device one row at a time, and align=kto needs two or more; "
                "change align.global_batch_size or launch.per_device_batch_size."
            )
        return super().check(config, prepared)

    def cost(self, config: Any, prepared: Prepared) -> Cost:
        pairs = super().cost(config, prepared)
        steps = num_steps(2 * len(prepared.config.preferences.compared_prompts(prepared)), config)
        return Cost(num_calls=pairs.num_calls, num_tokens_read=pairs.num_tokens_read, num_steps=steps)

    def train_on(
        self, rows: Sequence[dict[str, Any]], base_path: str, config: Any, context: Context
    ) -> tuple[Metrics, History]:
        from pipeline.training.kto import train_kto

        return train_kto(rows, base_path, config, context)
