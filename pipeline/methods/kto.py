"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306) on single replies, desirable or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

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
        kl_batch_size: int = Field(default=4, ge=2)
        """Rows from which the KL is estimated; all processes together train on so many rows at once."""

        @model_validator(mode="after")
        def _check_batches(self) -> Self:
            if self.global_batch_size % self.kl_batch_size:
                raise ValueError(
                    f"{{here}}.global_batch_size is {self.global_batch_size}, which is not a multiple of "
                    f"{{here}}.kl_batch_size={self.kl_batch_size}; change one of them"
                )
            return self

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        """A process estimates the KL from a prompt with another prompt's completion, so it needs two rows or more."""
        ranks, rows = prepared.config.launch.num_processes, config.kl_batch_size
        if rows % ranks or rows // ranks < 2:
            raise ConfigError(
                f"align.kl_batch_size is {rows} over launch.num_processes={ranks}; give each process "
                "the same number of rows, at least 2."
            )
        return super().check(config, prepared)

    def cost(self, config: Any, prepared: Prepared) -> Cost:
        pairs = super().cost(config, prepared)
        steps = num_steps(2 * len(prepared.config.preferences.compared_prompts(prepared)), config)
        return replace(pairs, num_steps=steps)

    def train_on(
        self, rows: Sequence[dict[str, Any]], base_path: str, config: Any, context: Context
    ) -> tuple[Metrics, History]:
        from pipeline.training.kto import train_kto

        return train_kto(rows, base_path, config, context)
