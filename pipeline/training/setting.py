"""Where and with what a training stage works."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import WORK
from pipeline.config import LaunchConfig, ModelConfig
from pipeline.engines.base import Stopwatch
from pipeline.tracking import Tracker


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
