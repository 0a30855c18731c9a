"""Run one stage: in this process, or with one process per rank under Accelerate's launcher or torchrun."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config, to_config, to_plain
from pipeline.chain.order import runs_folder
from pipeline.constitution.schema import Constitution
from pipeline.core import accelerate_file, distributed
from pipeline.core.cache import WORK
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import CaiError, StageError
from pipeline.core.log import Meter, Usage, logged_to, logger
from pipeline.core.memory import peak_gib, start_peak
from pipeline.core.stage import Context, Stage
from pipeline.core.tracking import NoTracker, Tracker, open_tracker
from pipeline.engines.base import ENGINES
from pipeline.report.differences import settings_differences
from pipeline.stages import STAGES

JOB, RESULT, ACCELERATE = "job.json", "result.json", "accelerate.yaml"
RANK = "pipeline.chain.launch"  # the module that each rank runs


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a process needs to run a stage. The parent process resolves all of it, so all ranks agree."""

    stage: str
    task: str
    """The stage and its round."""
    policy: str
    """The task that made the policy."""
    run_name: str
    config: Config
    constitution: Constitution
    folders: Mapping[str, Path]
    cache_key: str
    input_keys: Mapping[str, str]
    """task → cache key"""
    out: Path


@dataclass(frozen=True, kw_only=True)
class Result:
    metrics: dict[str, Any]
    busy_seconds: float
    num_calls: int
    num_tokens_written: int
    usage: dict[str, Usage]
    peak_memory_gib: float
    """Of the first rank."""


def execute(job: Job) -> Result:
    """Run the stage in this process. Only the first rank uses the tracker."""
    stage = next(stage for stage in STAGES if stage.name == job.stage)
    tracker = _tracker(job, stage) if distributed.is_main() else NoTracker()
    meter = Meter()
    context = Context(
        stage=job.task,
        policy=job.policy,
        reads=stage.reads(job.config, job.constitution),
        folders=job.folders,
        out=job.out,
        launch=job.config.launch,
        tracker=tracker,
        meter=meter,
    )
    start_peak()
    try:
        metrics = stage.run(stage.config(job.config), context)
        tracker.log({f"{job.stage}/{k}": v for k, v in metrics.items() if isinstance(v, int | float)})
        tracker.artifact(job.task, job.cache_key, job.out, dict(job.input_keys))
    finally:
        for name in ENGINES:
            ENGINES[name].release()
        tracker.finish()
    return Result(
        metrics=metrics,
        busy_seconds=meter.seconds,
        num_calls=meter.num_calls,
        num_tokens_written=meter.num_tokens_written,
        usage=meter.usage,
        peak_memory_gib=peak_gib(),
    )


def _tracker(job: Job, stage: Stage) -> Tracker:
    if job.config.tracking.kind == "none":
        return NoTracker()
    settings = {
        "stage": job.task,
        "cache_key": job.cache_key,
        job.stage: to_plain(stage.config(job.config)),
        "model": to_plain(job.config.model),
        "seed": job.config.seed,
        "constitution": f"{job.constitution.name} {job.constitution.version}",
    }
    if job.task == "report":  # it logs what the run came to, beside the settings of the whole run
        settings = {"constitution": settings["constitution"], **settings_of_run(job.config)}
    folder = Path(job.config.output_dir).expanduser() / "tracking"
    return open_tracker(job.config.tracking, job.run_name, job.task, settings, folder)


def settings_of_run(config: Config) -> dict[str, Any]:
    """What the runs of a sweep are told apart by: the settings that differ from those of the default run, and a few."""
    default = compose_config([])
    changed = {name: value for name, (_, value) in settings_differences([to_plain(default), to_plain(config)])}
    return {**changed, "model": config.model.name, "method": config.align.method, "seed": config.seed}


def environment(config: Config) -> dict[str, str]:
    """Packages and hardware, for manifests."""
    import torch

    from pipeline.engines.models import resolve_precision

    packages = ("cai", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "device": device,
        "precision": str(resolve_precision(config.model.precision)).removeprefix("torch."),
        "num_processes": str(config.launch.world_size),
        "sharding": config.launch.sharding,
    }


RunRanks = Callable[[dict[str, Any], LaunchConfig, Path], int]
"""Runs a job's ranks, on this machine or on all, and returns 0 if all ended well."""


def start(job: Job, run_ranks: RunRanks) -> Result:
    """Run the stage on all ranks of ``launch`` and wait for them.

    Raises:
        StageError: a rank failed.
    """
    work = job.out / WORK
    work.mkdir(parents=True, exist_ok=True)
    (work / RESULT).unlink(missing_ok=True)
    launch = job.config.launch
    code = run_ranks(_to_json(job), launch, work)
    if code != 0 or not (work / RESULT).exists():
        raise StageError(f"{job.task} failed on one of its {launch.world_size} ranks (see above).")
    result = json.loads((work / RESULT).read_text(encoding="utf-8"))
    return Result(**{**result, "usage": {name: Usage(**used) for name, used in result["usage"].items()}})


def _to_json(job: Job) -> dict[str, Any]:
    return {
        "stage": job.stage,
        "task": job.task,
        "policy": job.policy,
        "run_name": job.run_name,
        "config": to_plain(job.config),
        "constitution": job.constitution.model_dump(mode="json"),
        "folders": {name: str(path) for name, path in job.folders.items()},
        "cache_key": job.cache_key,
        "input_keys": dict(job.input_keys),
        "out": str(job.out),
    }


def run_ranks(job: dict[str, Any], launch: LaunchConfig, work: Path) -> int:
    """Start the ranks of this machine, wait for them, and return the exit code of their launcher."""
    process = started(job, launch, work)
    try:
        return process.wait()
    finally:
        stop(process)


def started(job: dict[str, Any], launch: LaunchConfig, work: Path) -> subprocess.Popen[bytes]:
    """Start the ranks of this machine. ``work``: where their launcher's files are written."""
    (work / JOB).write_text(json.dumps({**job, "parent": os.getpid()}), encoding="utf-8")
    accelerate_file.write(launch, work / ACCELERATE)
    threads = str(max(1, (os.cpu_count() or 1) // launch.num_processes))
    environment = {"OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore", **os.environ}
    return subprocess.Popen([*launch_command(launch, work), "-m", RANK, str(work / JOB)], env=environment)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a launcher, which ends its ranks, if it still runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def launch_command(launch: LaunchConfig, work: Path) -> list[str]:
    """The command of the launcher for this hardware, without the module to start.

    ``accelerate launch --cpu`` always starts a single process, so torchrun starts the CPU ranks. Accelerate uses
    torchrun for GPUs, too.
    """
    import torch

    machine = str(launch.machine_rank)
    if torch.cuda.is_available():
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(work / ACCELERATE)]
        return [*command, "--machine_rank", machine, "--mixed_precision", "no"]  # model.precision decides
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(launch.num_processes)]
    if launch.num_machines == 1:
        return [*command, "--standalone"]
    command += ["--nnodes", str(launch.num_machines), "--node_rank", machine]
    return [*command, "--master_addr", str(launch.main_process_ip), "--master_port", str(launch.main_process_port)]


def _leave_with_parent(parent: int) -> None:
    """Exit when the parent has ended: it holds the lock of the stage, and without the lock no rank may write."""
    import psutil

    def alive() -> bool:
        try:
            return psutil.Process(parent).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def watch() -> None:
        while alive():
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _job(data: dict[str, Any]) -> Job:
    """The job of a file; its configuration is checked again, for this machine may lack a file that it names."""
    return Job(
        stage=data["stage"],
        task=data["task"],
        policy=data["policy"],
        run_name=data["run_name"],
        config=to_config(data["config"]),
        constitution=Constitution.model_validate(data["constitution"]),
        folders={name: Path(path) for name, path in data["folders"].items()},
        cache_key=data["cache_key"],
        input_keys=data["input_keys"],
        out=Path(data["out"]),
    )


def run_rank(job_file: Path) -> int:
    """Do this rank's part of a job, and return the exit code."""
    data = json.loads(job_file.read_text(encoding="utf-8"))
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # it leaves models empty on other ranks, also for generating
    _leave_with_parent(data["parent"])
    distributed.state()
    try:
        job = _job(data)
        folder = runs_folder(job.config.output_dir) / job.run_name
        with logged_to(folder) if distributed.is_main() else nullcontext():
            result = execute(job)
    except CaiError as error:
        logger.error(f"rank {distributed.rank()}: {error}")
        return error.exit_code
    if distributed.is_main():
        (job.out / WORK / RESULT).write_text(json.dumps(asdict(result)), encoding="utf-8")
    distributed.barrier()
    return 0


if __name__ == "__main__":
    sys.exit(run_rank(Path(sys.argv[1])))
