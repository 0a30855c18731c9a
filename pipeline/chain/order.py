"""Which stages run, in which order, and in which folder each has its result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.chain.config import Config
from pipeline.constitution.schema import Constitution
from pipeline.core.cache import Manifest, cache_key
from pipeline.core.stage import Stage, key_fields
from pipeline.stages import STAGES

CHAIN = tuple(stage.name for stage in STAGES)


def stages_of(config: Config) -> list[Stage]:
    """The stages to run, in order: up to ``until``, without those whose outputs are not needed."""
    last = CHAIN.index(config.until)
    return [stage for stage in STAGES[: last + 1] if stage.name == config.until or stage.wanted(config)]


def needs_of(stage: Stage, config: Config) -> list[str]:
    """The stages that it reads and that run."""
    running = {other.name for other in stages_of(config)}
    return [name for name in stage.needed(config) if name in running]


def fields_for_key(
    stage: Stage, config: Config, constitution: Constitution, made: Mapping[str, Manifest]
) -> dict[str, Any]:
    """The fields that the stage's cache key hashes. ``made``: stage → manifest, for all stages that it needs."""
    inputs = {
        name: made[name].cache_key if stage.reads_whole_inputs else made[name].content_hash
        for name in needs_of(stage, config)
    }
    return key_fields(stage, config, constitution, inputs)


def folder_name(stage: Stage, fields: dict[str, Any]) -> str:
    return f"{stage.name}-{cache_key(fields)[:16]}"


def cache_folder(output_dir: str) -> Path:
    return Path(output_dir).expanduser() / "cache"


def runs_folder(output_dir: str) -> Path:
    return Path(output_dir).expanduser() / "runs"
