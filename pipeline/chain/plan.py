"""``cai plan``: which stages would run, which are cached, and what the run would cost. Also the engines of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.chain.config import Config
from pipeline.chain.order import Task, cache_folder, fields_for_key, folder_name, inputs_of, tasks_of
from pipeline.core.cache import Manifest
from pipeline.core.stage import Cost, Prepared
from pipeline.engines.base import EngineConfig

COUNTED = ("num_calls", "num_tokens_written", "num_tokens_read", "num_steps")


@dataclass(frozen=True)
class Step:
    stage: str
    """The stage, and its round after the first: the name of a task."""
    state: str
    folder: str
    cost: Cost


def plan(prepared: Prepared) -> list[Step]:
    """The steps of ``cai run``. After a stage that must run, later stages have no known state: inputs may change."""
    config = prepared.config
    made: dict[str, Manifest] = {}
    steps = []
    for task in tasks_of(config):
        missing = [name for name in inputs_of(task, config).values() if name not in made]
        if missing:
            before = any(cache_folder(config.output_dir).glob(f"{task.name}-*"))
            state = f"runs, unless {missing[0]} gives the same outputs as before" if before else "runs"
            steps.append(Step(task.name, state, "", _cost(task, prepared)))
            continue
        name = folder_name(task, fields_for_key(task, config, prepared.constitution, made))
        folder = cache_folder(config.output_dir) / name
        if manifest := Manifest.read(folder):
            made[task.name] = manifest
            steps.append(Step(task.name, "cached", name, Cost()))
        else:
            unfinished = folder.with_name(f"{name}.partial").exists()
            steps.append(Step(task.name, "resumes" if unfinished else "runs", name, _cost(task, prepared)))
    return steps


def _cost(task: Task, prepared: Prepared) -> Cost:
    return task.stage.cost(replace(prepared, config=task.seeded(prepared.config)))


def usage(config: Config, steps: Sequence[Step]) -> list[str]:
    """One line for each engine with a model of its own or with prices: what it would be asked, and what that costs."""
    fields = dict.fromkeys(field for step in steps for field in step.cost.roles)
    lines = []
    for field in fields:
        engine = _engine_at(config, field)
        shares = [step.cost.roles[field] for step in steps if field in step.cost.roles]
        total = Cost.sum(shares)
        calls, written, read = (getattr(total, name) for name in COUNTED[:3])
        if engine is None or not calls or (engine.model_name is None and engine.price is None):
            continue
        money = f", at most about {engine.price.of(read, written):,.2f} by its prices" if engine.price else ""
        shared = f" ({total.num_tokens_repeated:,} of them in shared beginnings)" if total.num_tokens_repeated else ""
        lines.append(
            f"{field} ({engine.model_name or config.model.name}): {calls:,} calls, {read:,} tokens read{shared}, "
            f"{written:,} written{money}"
        )
    return lines


def _engine_at(config: Config, field: str) -> EngineConfig | None:
    """The engine of a field such as ``evaluate.judge.engine``; None if that judge asks none."""
    found: Any = config
    for name in field.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, EngineConfig) else None


def reach_engines(prepared: Prepared) -> None:
    """Let each engine of the stages that will run answer once, before anything is spent.

    ``cai plan`` and a run whose stages are all cached ask none, so they need no server.

    Raises:
        ConfigError: an engine does not answer.
    """
    config = prepared.config
    stages = {task.name: task.stage for task in tasks_of(config)}
    asked = [stages[step.stage] for step in plan(prepared) if step.state != "cached"]
    uses = [
        (field, engine, field in stage.read_choices(config))
        for stage in asked
        for field, engine in stage.engines(config).items()
    ]
    reached: list[EngineConfig] = []
    for field, engine, _ in uses:
        if engine not in reached:
            engine.reach(field, any(reads for _, other, reads in uses if other == engine))
            reached.append(engine)
