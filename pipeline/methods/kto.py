"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) on single replies, desirable or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context, Cost, Metrics, Prepared
from pipeline.methods.base import METHODS, History, num_steps
from pipeline.methods.pairs import PairConfig, PairMethod


@METHODS.add
class KTO(PairMethod):
    """The better reply of a comparison is desirable, the other is undesirable."""

    name = "kto"

    class Config(PairConfig):
        """Kahneman-Tversky optimisation."""

        method: Literal["kto"] = "kto"
        """Kahneman-Tversky optimisation."""

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        """Check that the per-device batch has two rows: TRL estimates the KL from a prompt and another row's reply."""
        from pipeline.training.models import largest_divisor, rows_a_device_holds

        launch = prepared.config.launch
        if largest_divisor(config.global_batch_size // launch.num_processes, rows_a_device_holds(launch)) < 2:
            raise ConfigError(
                f"align.global_batch_size is {config.global_batch_size} over launch.num_processes="
                f"{launch.num_processes}, which gives a per-device batch size of 1, but align=kto needs at least 2; "
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
