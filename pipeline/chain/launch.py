"""Run one stage: in this process, or in one process a rank under Accelerate's launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pipeline.chain.config import Config, to_config, to_plain
from pipeline.chain.stages import STAGES
from pipeline.constitution.paper import deviations_from_paper
from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.cache import WORK
from pipeline.core.errors import CaiError, StageError
from pipeline.core.log import console
from pipeline.core.tracking import NoTracker, Tracker, open_tracker
from pipeline.engines.base import Stopwatch
from pipeline.stages.base import Inputs

JOB, RESULT = "job.json", "result.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a stage needs, resolved by the parent: no rank resolves anything for itself."""

    stage: str
    run_name: str
    config: Config
    constitution: Constitution
    folders: Mapping[str, Path]
    contents: Mapping[str, str]
    out: Path


@dataclass(frozen=True, kw_only=True)
class Result:
    metrics: dict[str, Any]
    busy_seconds: float


def execute(job: Job) -> Result:
    """Run the stage in this process; on every rank but the first, silently."""
    stage, config = STAGES[job.stage], job.config
    tracker = _tracker(job) if distributed.is_main() else NoTracker()
    inputs = Inputs(
        folders=dict(job.folders),
        model=config.model,
        engine=config.engine,
        launch=config.launch,
        constitution=job.constitution,
        preset=config.preset,
        deviations=deviations_from_paper(config, job.constitution),
        seed=config.seed,
        guidelines=config.evaluate.guidelines,
        preferences=config.preferences,
        tracker=tracker,
        watch=Stopwatch(),
    )
    try:
        metrics = stage.module.run(getattr(config, stage.section), inputs, job.out)
        tracker.log({f"{job.stage}/{k}": v for k, v in metrics.items() if isinstance(v, int | float)})
        tracker.artifact(job.stage, job.out.name.removesuffix(".partial"), job.out, dict(job.contents))
    finally:
        tracker.finish()
    return Result(metrics=metrics, busy_seconds=inputs.watch.seconds)


def _tracker(job: Job) -> Tracker:
    section = STAGES[job.stage].section
    settings = {
        "stage": job.stage,
        section: to_plain(getattr(job.config, section)),
        "model": to_plain(job.config.model),
        "seed": job.config.seed,
        "constitution": f"{job.constitution.name} {job.constitution.version}",
    }
    folder = Path(job.config.output_dir).expanduser() / "tracking"
    return open_tracker(job.config.tracking, job.run_name, job.stage, settings, folder)


def launch(job: Job) -> Result:
    """Run the stage on ``launch.num_processes`` ranks and wait for them.

    ``accelerate launch --cpu`` starts a single process whatever it is told, so CPU ranks are started by torchrun,
    which is what it uses for GPUs; inside, both are Accelerate's.
    """
    work = job.out / WORK
    work.mkdir(parents=True, exist_ok=True)
    (work / RESULT).unlink(missing_ok=True)
    (work / JOB).write_text(
        json.dumps(
            {
                "stage": job.stage,
                "run_name": job.run_name,
                "config": to_plain(job.config),
                "constitution": job.constitution.model_dump(mode="json"),
                "folders": {name: str(path) for name, path in job.folders.items()},
                "contents": dict(job.contents),
                "out": str(job.out),
                "parent": os.getpid(),
            }
        ),
        encoding="utf-8",
    )
    num_processes = job.config.launch.num_processes
    threads = str(max(1, (os.cpu_count() or 1) // num_processes))
    environment = {"OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore", **os.environ}
    command = [*launch_command(num_processes), "-m", "pipeline.chain.launch", str(work / JOB)]
    code = subprocess.call(command, env=environment)
    if code != 0 or not (work / RESULT).exists():
        raise StageError(f"{job.stage} failed on one of its {num_processes} ranks (see above).")
    result = json.loads((work / RESULT).read_text(encoding="utf-8"))
    return Result(**result)


def launch_command(num_processes: int) -> list[str]:
    """The launcher for this hardware, up to the module it starts."""
    import torch

    if torch.cuda.is_available():
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
        command += ["--num_processes", str(num_processes), "--num_machines", "1"]
        return [*command, "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*command, "--nproc_per_node", str(num_processes)]


def _leave_with_parent(parent: int) -> None:
    """End this rank when the process that owns the stage's lock is gone: nobody else may write to the folder."""
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


def main() -> int:
    data = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _leave_with_parent(data["parent"])
    out = Path(data["out"])
    job = Job(
        stage=data["stage"],
        run_name=data["run_name"],
        config=to_config(OmegaConf.create(data["config"])),
        constitution=Constitution.model_validate(data["constitution"]),
        folders={name: Path(path) for name, path in data["folders"].items()},
        contents=data["contents"],
        out=out,
    )
    distributed.state()
    try:
        result = execute(job)
    except CaiError as error:
        console.print(f"rank {distributed.rank()}: {error}", style="red", markup=False, soft_wrap=True)
        return error.exit_code
    if distributed.is_main():
        (out / WORK / RESULT).write_text(json.dumps(vars(result)), encoding="utf-8")
    distributed.barrier()
    return 0


if __name__ == "__main__":
    sys.exit(main())
