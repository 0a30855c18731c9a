"""Runs the chain: order, cache keys, skip, resume and commit. It does not depend on any particular stage."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.chain import launch, machines
from pipeline.chain.checkpoints import CHECKPOINT, read_config, slug
from pipeline.chain.config import Config, to_plain
from pipeline.chain.order import (
    CHAIN,
    Task,
    cache_folder,
    fields_for_key,
    folder_name,
    inputs_of,
    runs_folder,
    tasks_of,
)
from pipeline.chain.plan import reach_engines
from pipeline.chain.preflight import check_stages, read_inputs
from pipeline.chain.rendering import table
from pipeline.chain.runs import NO_REPORT, RUN_FILE, Ending, close, log_stage, log_start
from pipeline.constitution.files import to_yaml
from pipeline.constitution.paper import deviations_from_paper
from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.cache import WORK, Manifest, cache_key, commit, hash_files, link, write_text_atomically
from pipeline.core.errors import ArtifactError, CaiError, ConfigError, StageError
from pipeline.core.locks import locked
from pipeline.core.log import duration, logged_to, say, warn
from pipeline.core.memory import free_memory
from pipeline.core.stage import Prepared
from pipeline.core.text import count_of
from pipeline.evidence.approve import GUIDELINES
from pipeline.guard.guard import FOLDER as GUARD
from pipeline.report.write import FILES, TABLES


@dataclass(frozen=True)
class Finished:
    """One finished task of a run. ``cached``: this run reused it."""

    task: Task
    folder: Path
    manifest: Manifest
    cached: bool


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    stages: dict[str, Finished]
    """By the names of their tasks, in order."""
    ending: Ending = NO_REPORT
    """What the report says; nothing if the run ended before it."""

    @property
    def gate(self) -> str | None:
        """PASS, FAIL, OVERRIDDEN or UNDECIDED; None if no guidelines are set or the run ended before the report."""
        return self.ending.gate


def run(config: Config) -> Run:
    """Run every stage up to ``config.until``; finished stages are reused. Raises ``CaiError`` for known failures."""
    with distributed.outside_ranks() if config.launch.num_machines > 1 else nullcontext():
        prepared = read_inputs(config)
        if anything_to_do := not is_finished(prepared):
            check_stages(prepared)
        name = run_name(config, prepared.constitution)
        folder = runs_folder(config.output_dir) / name
        if config.launch.machine_rank == 0:
            if anything_to_do:
                reach_engines(prepared)
            return _run(prepared, name, folder)
        machines.lend(config.launch)
        return Run(name=name, folder=folder, stages={})


def _run(prepared: Prepared, name: str, folder: Path) -> Run:
    started, config, constitution = time.perf_counter(), prepared.config, prepared.constitution
    _open_run(folder, config, constitution)
    with logged_to(folder), machines.crew(config.launch) as run_ranks:
        _announce(name, folder, config, prepared)
        log_start(folder)
        done: dict[str, Finished] = {}
        tasks = tasks_of(config)
        last_alignment = next((task for task in reversed(tasks) if task.stage.name == "align"), None)
        for number, task in enumerate(tasks, start=1):
            made = {name: finished.manifest for name, finished in done.items()}
            fields = fields_for_key(task, config, constitution, made)
            _record(folder, done, making=folder_name(task, fields))
            done[task.name] = _ensure(task, fields, prepared, done, name, run_ranks)
            link(done[task.name].folder, folder / f"{number}-{task.name}")
            if task == last_alignment:  # from now on others can use the model
                link(done[task.name].folder / "model", folder / CHECKPOINT)
            log_stage(folder, task.name, done[task.name].folder, done[task.name].cached)
        _record(folder, done)
        _remove_old_links(folder, [f"{number}-{name}" for number, name in enumerate(done, start=1)])
        _finish(folder, done, time.perf_counter() - started)
        ending = close(folder, config, done["report"].manifest) if "report" in done else NO_REPORT
    return Run(name=name, folder=folder, stages=done, ending=ending)


def is_finished(prepared: Prepared) -> bool:
    """Whether every stage of the run is in the cache."""
    made: dict[str, Manifest] = {}
    for task in tasks_of(prepared.config):
        fields = fields_for_key(task, prepared.config, prepared.constitution, made)
        manifest = Manifest.read(cache_folder(prepared.config.output_dir) / folder_name(task, fields))
        if manifest is None:
            return False
        made[task.name] = manifest
    return True


def _announce(name: str, folder: Path, config: Config, prepared: Prepared) -> None:
    constitution, checkpoints = prepared.constitution, list(config.evaluate.checkpoints)
    if checkpoints:
        against = f" against {checkpoints[0]}" if len(checkpoints) > 1 else ""
        say(f"evaluation {name}: {checkpoints[-1]}{against}, {folder}")
    else:
        what = f"constitution {constitution.name} {constitution.version}, model {config.model.name}"
        say(f"run {name}: {what}, {folder}")
    for note in prepared.notes:
        warn(note)
    for line in table(prepared.rendering):
        say(line)
    deviations = [] if checkpoints else deviations_from_paper(config, constitution)
    if deviations:
        ways = count_of(len(deviations), "way")
        say(f"  differs from the paper in {ways}; the report lists them, and so does `cai plan` with the same settings")


def run_name(config: Config, constitution: Constitution) -> str:
    """The given name, or one made from the configuration: equal configurations have equal names."""
    if config.name:
        return config.name
    digest = cache_key({"config": config.key(), "constitution": constitution.model_dump(mode="json")})[:6]
    if config.evaluate.checkpoints:
        return f"evaluate-{slug(list(config.evaluate.checkpoints)[-1])}-{digest}"
    # A shorter run has a folder of its own: in that of the whole run it would take the place of the report.
    how_far = config.align.method if config.until == CHAIN[-1] else f"until-{config.until}"
    return f"{constitution.name}-{config.model.name}-{how_far}-{digest}"


def _open_run(folder: Path, config: Config, constitution: Constitution) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in () if _holds(folder, config) else folder.iterdir():  # files of another run with this name
            if old.is_symlink() or old.name in {RUN_FILE, GUIDELINES, *FILES}:
                old.unlink()
            elif old.name == TABLES:  # written by `cai report`
                shutil.rmtree(old)
        write_text_atomically(folder / "constitution.yaml", to_yaml(constitution))
        write_text_atomically(folder / "config.json", json.dumps(to_plain(config), indent=2))
        link(folder, folder.parent / ("latest-evaluation" if config.evaluate.checkpoints else "latest"))
    except OSError as error:
        raise ConfigError(
            f"output_dir is {config.output_dir!r}, which can't be written ({error.strerror}); give another folder."
        ) from None


def _holds(folder: Path, config: Config) -> bool:
    """Whether the folder is of a run with these settings, but for questions about it: its report stays until the new
    one is there."""
    try:
        old, new = to_plain(read_config(folder)), to_plain(config)  # settings that are newer than the run: by default
    except ArtifactError:  # none, damaged, or of another version
        return False
    return all(
        old.get(name) == value for name, value in new.items() if name not in ("attack", "explain", "launch", "tracking")
    )


def _remove_old_links(folder: Path, stages: Sequence[str]) -> None:
    """Links to stages that an earlier run here had at other places of the chain."""
    for old in folder.glob("[0-9]*-*"):
        if old.is_symlink() and old.name not in stages:
            old.unlink()


def _record(folder: Path, done: dict[str, Finished], making: str | None = None) -> None:
    stages = {name: finished.folder.name for name, finished in done.items()}
    record = {"name": folder.name, "stages": stages, "making": making}
    write_text_atomically(folder / RUN_FILE, json.dumps(record, indent=2))


def _ensure(
    task: Task,
    fields: dict[str, Any],
    prepared: Prepared,
    done: dict[str, Finished],
    name: str,
    run_ranks: launch.RunRanks,
) -> Finished:
    """Reuse the finished task, or run it while holding its lock."""
    final = cache_folder(prepared.config.output_dir) / folder_name(task, fields)
    if manifest := Manifest.read(final):
        say(f"{task.name}: cached ({final.name})")
        return Finished(task, final, manifest, cached=True)
    with locked(final.parent / ".locks" / final.name, prepared.config.launch.num_machines > 1):
        if manifest := Manifest.read(final):  # another run finished it while this one waited
            say(f"{task.name}: finished by another run ({final.name})")
            return Finished(task, final, manifest, cached=True)
        manifest = _make(task, fields, final, prepared, done, name, run_ranks)
        return Finished(task, final, manifest, cached=False)


def _make(
    task: Task,
    fields: dict[str, Any],
    final: Path,
    prepared: Prepared,
    done: dict[str, Finished],
    name: str,
    run_ranks: launch.RunRanks,
) -> Manifest:
    config, partial = prepared.config, final.with_name(f"{final.name}.partial")
    stage, inputs = task.stage, inputs_of(task, config)
    for other in inputs.values():  # a damaged input would give a wrong result under the right key
        done[other].manifest.verify(done[other].folder)
    _set_aside(final)
    resumed = partial.exists()
    partial.mkdir(parents=True, exist_ok=True)
    say(f"{task.name}: {'resuming' if resumed else 'making'} {final.name}")
    started_at, started = datetime.now(UTC), time.perf_counter()
    job = _job(task, fields, partial, prepared, done, name)
    with _explained(task.name, partial):
        parallel = stage.parallel and config.launch.world_size > 1
        result = launch.start(job, run_ranks) if parallel else launch.execute(job)
        outputs = hash_files(partial, (path for pattern in stage.outputs for path in partial.glob(pattern)))
        assert outputs, f"{task.name} made nothing"
        manifest = Manifest(
            stage=task.name,
            cache_key=cache_key(fields),
            fields=fields,
            inputs={source: done[source].folder.name for source in inputs.values()},
            outputs=outputs,
            content_hash=cache_key(outputs),
            metrics=result.metrics,
            seconds=time.perf_counter() - started,
            busy_seconds=result.busy_seconds,
            num_calls=result.num_calls,
            num_tokens_written=result.num_tokens_written,
            usage=result.usage,
            peak_memory_gib=result.peak_memory_gib,
            started=started_at.isoformat(timespec="seconds"),
            environment=launch.environment(config),
        )
        commit(partial, final, manifest)
        shutil.rmtree(final / WORK, ignore_errors=True)
    say(f"{task.name}: done in {duration(manifest.seconds)}")
    for name, used in result.usage.items():
        say(f"  {name}: {used}")
    free_memory()
    return manifest


def _set_aside(final: Path) -> None:
    """Move a folder without a manifest. It may be anything: don't use it, don't delete it."""
    if final.exists():
        aside = final.with_name(f"{final.name}.damaged-{int(time.time())}")
        warn(f"{final} has no manifest; it is moved to {aside.name} and the stage runs again.")
        final.rename(aside)


def _job(
    task: Task, fields: dict[str, Any], out: Path, prepared: Prepared, done: dict[str, Finished], name: str
) -> launch.Job:
    inputs = inputs_of(task, prepared.config)
    return launch.Job(
        stage=task.stage.name,
        task=task.name,
        policy=inputs.get("sft", "sft"),
        run_name=name,
        config=task.seeded(prepared.config),
        constitution=prepared.constitution,
        folders={other: done[source].folder for other, source in inputs.items()},
        cache_key=cache_key(fields),
        input_keys={source: done[source].manifest.cache_key for source in inputs.values()},
        out=out,
    )


@contextmanager
def _explained(task: str, partial: Path) -> Iterator[None]:
    """Turn a full disk and a lack of memory into a StageError. Other errors are raised unchanged."""
    try:
        yield
    except CaiError:
        raise
    except Exception as error:  # raised again unless it is one of these two
        problem = str(error).casefold()
        if getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "no space left" in problem:
            place = getattr(error, "filename", None) or partial.parent
            raise StageError(
                f"{task}: the disk of {place} is full; free some space and run the same command again to continue."
            ) from error
        if isinstance(error, MemoryError) or "out of memory" in problem or "can't allocate memory" in problem:
            raise StageError(
                f"{task}: out of memory; lower launch.batch_rows or launch.per_device_batch_size and run again."
            ) from error
        raise


def _finish(folder: Path, done: dict[str, Finished], seconds: float) -> None:
    if report := done.get("report"):
        for name in FILES:
            shutil.copyfile(report.folder / name, folder / name)
        if (folder / TABLES).is_dir() and not (folder / TABLES).is_symlink():
            shutil.rmtree(folder / TABLES)  # written by `cai report`
        link(report.folder / TABLES, folder / TABLES)
    if guard := done.get("guard"):
        link(guard.folder / GUARD, folder / GUARD)
    made = [finished for finished in done.values() if not finished.cached]
    busy = sum(finished.manifest.busy_seconds for finished in made)
    share = f", {100 * (1 - busy / seconds):.0f} % of it outside generating, scoring and training" if busy else ""
    peak = max((finished.manifest.peak_memory_gib or 0 for finished in made), default=0)
    memory = f", at most {peak:.1f} GiB of memory" if peak else ""
    say(f"finished in {duration(seconds)} ({len(made)} of {len(done)} stages made{share}{memory})")
    if "report" in done:
        say(f"report: {folder / 'report.html'}")
        if any(finished.task.stage.name == "align" for finished in done.values()):
            say(f"checkpoint: {folder / CHECKPOINT}")
