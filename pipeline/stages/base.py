"""The contract of a stage: what it may read, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.chain.config import LaunchConfig, ModelConfig, PreferencesConfig
from pipeline.chain.config_sources import EngineConfig
from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.cache import WORK, RecordLog
from pipeline.core.tracking import NoTracker, Tracker
from pipeline.engines.base import Stopwatch
from pipeline.training.setting import Setting

Metrics = dict[str, Any]


@dataclass(kw_only=True)
class Inputs:
    """Everything a stage may see beside its own section of the configuration."""

    folders: dict[str, Path]
    """Finished stages before this one, by name."""
    model: ModelConfig
    engine: EngineConfig
    launch: LaunchConfig
    constitution: Constitution
    preset: str
    deviations: list[str]
    """How this configuration differs from the paper, for the report."""
    seed: int
    guidelines: str | None = None
    """The written limits that the last model is held to."""
    preferences: PreferencesConfig | None = None
    """How the run labels pairs, for setting its labeller against people's choices."""
    tracker: Tracker = field(default_factory=NoTracker)
    watch: Stopwatch = field(default_factory=Stopwatch)

    def setting(self, out: Path) -> Setting:
        return Setting(
            model=self.model, launch=self.launch, seed=self.seed, out=out, tracker=self.tracker, watch=self.watch
        )

    def log(self, out: Path, name: str) -> RecordLog:
        """An append-only log in the unfinished stage's folder."""
        return RecordLog(out / WORK, name, distributed.rank())
