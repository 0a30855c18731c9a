"""What runs, in which order and rounds, what each part reads of the others, and in which folder each has its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from pipeline.chain.config import Config
from pipeline.constitution.schema import Constitution
from pipeline.core.cache import Manifest, cache_key
from pipeline.core.stage import ROUND, Stage, key_fields
from pipeline.records import derive_seed
from pipeline.stages import STAGES

CHAIN = tuple(stage.name for stage in STAGES)


@dataclass(frozen=True)
class Task:
    """A stage in one round of a run."""

    stage: Stage
    round: int = 1

    @property
    def name(self) -> str:
        """``align`` in the first round, ``align-round-2`` in the second."""
        return self.stage.name if self.round == 1 else f"{self.stage.name}{ROUND}{self.round}"

    def seeded(self, config: Config) -> Config:
        """The configuration with the seed of the round, so that no round repeats the draws of another."""
        if self.round == 1:
            return config
        seed = derive_seed(config.seed, "round", self.round) % 2**31  # NumPy takes 32 bits
        return config.model_copy(update={"seed": seed})


def tasks_of(config: Config) -> list[Task]:
    """What runs, in order: up to ``until`` in the last round, without stages whose outputs are not needed."""
    tasks: list[Task] = []
    for repeats, group in groupby(STAGES, key=lambda stage: stage.repeats):
        stages, num_rounds = list(group), config.rounds if repeats else 1
        rounds = range(1, num_rounds + 1)
        tasks += [Task(stage, number) for number in rounds for stage in stages if number >= stage.first_round]
    last = next(task for task in reversed(tasks) if task.stage.name == config.until)
    return [*(task for task in tasks[: tasks.index(last)] if task.stage.wanted(config)), last]


def stages_of(config: Config) -> list[Stage]:
    """The stages that run, each once."""
    return list(dict.fromkeys(task.stage for task in tasks_of(config)))


def inputs_of(task: Task, config: Config) -> dict[str, str]:
    """Stage that a task reads → the task that makes it, for those that run.

    It is the newest before the task. In later rounds, the policy of the round before takes the place of the SFT model.
    """
    before = list(takewhile(lambda other: other != task, tasks_of(config)))
    needed = task.stage.needed(config)
    if task.stage.reads_every_round:
        return {other.name: other.name for other in before if other.stage.name in needed}
    newest = {other.stage.name: other.name for other in before}
    if task.round > 1:
        newest["sft"] = newest["align"]
    return {name: newest[name] for name in needed if name in newest}


def fields_for_key(
    task: Task, config: Config, constitution: Constitution, made: Mapping[str, Manifest]
) -> dict[str, Any]:
    """The fields that a task's cache key hashes. ``made``: task → manifest, for all tasks that it reads."""
    stage = task.stage
    inputs = {
        name: made[source].cache_key if stage.reads_whole_inputs else made[source].content_hash
        for name, source in inputs_of(task, config).items()
    }
    return key_fields(stage, task.seeded(config), constitution, inputs)


def folder_name(task: Task, fields: dict[str, Any]) -> str:
    return f"{task.name}-{cache_key(fields)[:16]}"


def cache_folder(output_dir: str) -> Path:
    return Path(output_dir).expanduser() / "cache"


def runs_folder(output_dir: str) -> Path:
    return Path(output_dir).expanduser() / "runs"
