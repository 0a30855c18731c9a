"""``cai dashboard``: the command that shows what a run's tracker has kept."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.chain.checkpoints import read_config
from pipeline.chain.config import Config
from pipeline.chain.runs import find_run
from pipeline.core.errors import ConfigError
from pipeline.core.tracking import check_tracking, wandb_is_online


@dataclass(frozen=True)
class Show:
    """How to look at a run: a program to start, or a page to open."""

    said: str
    program: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    page: str = ""


def dashboard_of(output_dir: str, name: str, port: int | None) -> Show:
    """What shows the tracker of a run.

    Raises:
        ConfigError: there is no such run, it tracked nothing, or what it tracked is gone.
    """
    run = find_run(output_dir, name).resolve()
    config = read_config(run)
    kind = config.tracking.kind
    if kind == "none":
        raise ConfigError(
            f"the run {run.name} has tracking.kind=none, so nothing was tracked; its report is {run / 'report.html'}."
        )
    check_tracking(config.tracking.model_copy(update={"mode": "auto"}))
    folder = Path(config.output_dir).expanduser() / "tracking"
    if kind == "wandb" and wandb_is_online(config.tracking):
        return _wandb_page(config, run.name)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not there any more, so nothing is left to show; run in the folder of the run.")
    return {"wandb": _wandb, "trackio": _trackio, "tensorboard": _tensorboard}[kind](config, folder, run.name, port)


def _wandb_page(config: Config, run: str) -> Show:
    tracking = config.tracking
    page = f"https://wandb.ai/{tracking.entity}/{tracking.project}" if tracking.entity else "https://wandb.ai/home"
    return Show(said=f"{page}: the project {tracking.project}, the group {run}", page=page)


def _wandb(config: Config, folder: Path, run: str, port: int | None) -> Show:
    program = [sys.executable, "-m", "wandb", "leet", str(folder / "wandb")]
    return Show(said=f"the group {run}, in the terminal; `wandb sync` uploads it", program=program)


def _trackio(config: Config, folder: Path, run: str, port: int | None) -> Show:
    project = config.tracking.project
    program = [sys.executable, "-c", f"import trackio; trackio.show(project={project!r})"]
    environment = {"TRACKIO_DIR": str(folder.resolve())} | ({"GRADIO_SERVER_PORT": str(port)} if port else {})
    return Show(said=f"the runs {run}-STAGE of the project {project}", program=program, environment=environment)


def _tensorboard(config: Config, folder: Path, run: str, port: int | None) -> Show:
    program = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    return Show(said=f"the runs {run}/STAGE", program=program + (["--port", str(port)] if port else []))
