"""Existing runs: find one, show its state, write its report again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.chain.checkpoints import read_config
from pipeline.chain.config import Config
from pipeline.chain.order import CHAIN, runs_folder, tasks_of
from pipeline.constitution.files import load_constitution
from pipeline.constitution.paper import deviations_from_paper
from pipeline.core.cache import MANIFEST, WORK, Manifest, hash_file, write_text_atomically
from pipeline.core.errors import ArtifactError, ConfigError, did_you_mean
from pipeline.core.log import duration, say
from pipeline.evals.gate import find_guidelines, gate_metrics, overridden, written_or_none
from pipeline.evidence.approve import GUIDELINES, approval_of, overrides, report_hash, reported
from pipeline.evidence.events import append, person, read_events
from pipeline.report.build import build_report
from pipeline.report.write import TABLES, write_report

RUN_FILE = "run.json"


def status(output_dir: str, name: str) -> list[tuple[str, str, str]]:
    """(task, state, details) of every task of a run. ``name`` is the name or folder of the run, or ``latest``."""
    folder = find_run(output_dir, name)
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        stages, making = dict(record["stages"]), record["making"]
    except FileNotFoundError:
        stages, making = {}, None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{folder / 'run.json'} is damaged; run the same command again to rewrite it.") from None
    cache = _cache_of(folder)
    rows = []
    for task in _whole(read_config(folder)):
        if task in stages and (manifest := Manifest.read(cache / stages[task])):
            begun = manifest.started[:16].replace("T", " ")  # of an ISO time in UTC
            rows.append((task, "done", f"{duration(manifest.seconds)}, begun {begun} UTC"))
        elif making and making.rpartition("-")[0] == task:
            rows.append((task, "not finished", _unfinished(cache / f"{making}.partial")))
        else:
            rows.append((task, "not started", ""))
    return rows


def _whole(config: Config) -> list[str]:
    """The tasks of a run that goes on to its report."""
    return [task.name for task in tasks_of(config.model_copy(update={"until": CHAIN[-1]}))]


def find_run(output_dir: str, name: str) -> Path:
    """The folder of a run, by its name or folder. Raises ConfigError if there is none."""
    folder = Path(name).expanduser()
    if (folder / "config.json").exists():
        return folder
    runs = runs_folder(output_dir)
    if (runs / name / "config.json").exists():
        return runs / name
    known = [path.name for path in runs.glob("*") if (path / "config.json").exists()]
    hint = did_you_mean(name, known) if known else "; there are no runs yet"
    raise ConfigError(f"RUN: there is no run {name!r} in {runs}{hint}.")


def _cache_of(run: Path) -> Path:
    """The cache beside the folder of runs. ``runs`` may be a link to another disk, and ``run`` may be one to a run."""
    folders = (path.parent.parent / "cache" for path in (run.absolute(), run.resolve()))
    return next((folder for folder in folders if folder.is_dir()), run.absolute().parent.parent / "cache")


def _unfinished(partial: Path) -> str:
    """State of an unfinished stage: number of records, last checkpoint."""
    num_records = sum(path.read_bytes().count(b"\n") for path in (partial / WORK).glob("*.jsonl"))
    checkpoints = sorted((partial / WORK).glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    parts = [f"{num_records} records"] if num_records else []
    parts += [checkpoints[-1].name] if checkpoints else []
    return f"{', '.join(parts) or 'started'} in {partial.name}"


def finished_tasks(folder: Path, config: Config) -> dict[str, Path]:
    """Task → its folder, for the finished tasks of a run. Without ``report``, which only shows the others."""
    links = {task: next(folder.glob(f"[0-9]*-{task}"), None) for task in _whole(config) if task != "report"}
    return {task: path.resolve() for task, path in links.items() if path and Manifest.read(path)}


@dataclass(frozen=True)
class Ending:
    """How a run ended. ``gate``: PASS, FAIL, OVERRIDDEN or UNDECIDED; None without guidelines."""

    gate: str | None
    awaits_approval: bool


NO_REPORT = Ending(gate=None, awaits_approval=False)


def report_anew(output_dir: str, name: str, guidelines: str | None) -> Ending:
    """Write a finished run's report again from its stages, with other guidelines if given.

    Raises ArtifactError if the run has no finished evaluation.
    """
    folder = find_run(output_dir, name).resolve()
    config = read_config(folder)
    constitution = load_constitution(folder / "constitution.yaml")
    finished = finished_tasks(folder, config)
    if "evaluate" not in finished:
        raise ArtifactError(f"run {folder.name} has no finished evaluation; run it again without until=.")
    used = written_or_none(guidelines) if guidelines else config.evaluate.guidelines
    events, results = read_events(folder), hash_file(finished["evaluate"] / "results.json")
    report = build_report(
        finished,
        model=config.model,
        guidelines=used,
        preset=config.preset,
        deviations=deviations_from_paper(config, constitution),
        constitution=constitution,
        override=lambda gate: overridden(gate, overrides(events, gate, results)),
    )
    if (folder / TABLES).is_symlink():  # a link into the cache, which must not change
        (folder / TABLES).unlink()
    write_report(report, folder)
    say(f"report: {folder / 'report.html'}")
    return end(folder, used, gate_metrics(report.gate))


def end(folder: Path, guidelines: str | None, metrics: dict[str, Any]) -> Ending:
    """Keep the guidelines beside the report, log what it says, and say it.

    Args:
        metrics: of the gate (``gate_metrics``).
    """
    kept = folder / GUIDELINES
    if guidelines is None:
        kept.unlink(missing_ok=True)
    else:
        write_text_atomically(kept, find_guidelines(guidelines).read_text(encoding="utf-8-sig"))
    accepted = reported(folder)
    details = {"gate": metrics["gate"], "failed": metrics["failed"], "report": report_hash(accepted), "files": accepted}
    append(folder, "report", details, person())
    say_gate(metrics)
    approval = approval_of(folder)
    if approval.sentence:
        say(f"approval: {approval.sentence}")
    return Ending(metrics["gate"], approval.awaited)


def log_start(folder: Path) -> None:
    """Write to the event log that a run starts, and with which settings."""
    append(folder, "run started", {"cai": __version__, "config": hash_file(folder / "config.json")}, person())


def log_stage(folder: Path, task: str, made: Path, cached: bool) -> None:
    """Write to the event log which result of a task is used. ``cached``: this run did not make it."""
    details = {"task": task, "folder": made.name, "manifest": hash_file(made / MANIFEST), "cached": cached}
    append(folder, "stage", details, person())


def close(folder: Path, config: Config, report: Manifest) -> Ending:
    """Log what the report says. If someone has overridden a guideline, it is written again with that."""
    if any(event.what == "overridden" for event in read_events(folder)):
        return report_anew(config.output_dir, str(folder), None)
    return end(folder, config.evaluate.guidelines, report.metrics)


def say_gate(metrics: dict[str, Any]) -> None:
    if metrics["gate"] is not None:
        failed = "; ".join(metrics["failed"])
        say(f"gate: {metrics['gate']}" + (f" ({failed})" if failed else ""))
