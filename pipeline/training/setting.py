"""Where and with what a training stage works."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.chain.config import LaunchConfig, ModelConfig
from pipeline.core.cache import WORK
from pipeline.core.tracking import Tracker
from pipeline.engines.base import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Setting:
    """``out`` is the stage's folder; checkpoints and logs stand in ``work`` below it until the stage has finished."""

    model: ModelConfig
    launch: LaunchConfig
    seed: int
    out: Path
    tracker: Tracker
    watch: Stopwatch

    @property
    def work(self) -> Path:
        return self.out / WORK
