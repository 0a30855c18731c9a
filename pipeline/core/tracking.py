"""Dashboards: the only module that imports wandb, trackio and tensorboard. One group per run, one job per stage.

An error in a dashboard must not stop the run: it becomes one warning, and tracking stops.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pipeline.core.errors import ConfigError, first_line
from pipeline.core.log import keep_traceback, warn
from pipeline.core.settings import RUNTIME, Settings

INIT_TIMEOUT_SECONDS = 30.0  # wandb's default of 90 seconds is long for a server that does not answer
FINISH_TIMEOUT_SECONDS = 60.0  # the time to upload what is left; the local files stay


class TrackingConfig(Settings):
    """The dashboard that shows the run. These settings are in no cache key."""

    kind: Annotated[Literal["wandb", "trackio", "tensorboard", "none"], RUNTIME] = "wandb"
    """Which dashboard to use."""
    project: Annotated[str, RUNTIME] = "cai"
    """The name of the project in the dashboard."""
    entity: Annotated[str | None, RUNTIME] = None
    """Only for wandb: the user or team; null: the default of the account."""
    mode: Annotated[Literal["auto", "online", "offline"], RUNTIME] = "auto"
    """Only for wandb: ``auto`` is online if an API key is set, else offline."""


class Tracker(Protocol):
    def log(self, values: dict[str, float], step: int | None = None) -> None:
        """Log numbers, at a training step or once."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table for people to read, such as transcripts or the evaluation table."""

    def result(self, values: dict[str, float | str]) -> None:
        """Log what a run came to. In the dashboard's table of runs, it stands beside the settings of the run."""

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        """Record that stage ``name`` made the result ``key`` from ``inputs`` (stage → cache key)."""

    def finish(self) -> None: ...


class NoTracker:
    """Tracks nothing."""

    def log(self, values: dict[str, float], step: int | None = None) -> None: ...
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def result(self, values: dict[str, float | str]) -> None: ...
    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None: ...
    def finish(self) -> None: ...


class WandbTracker:
    """Weights & Biases: online with a key, else offline (read with ``wandb leet``, upload with ``wandb sync``)."""

    def __init__(self, config: TrackingConfig, group: str, job: str, settings: dict[str, Any], folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb

        def start(mode: Literal["online", "offline"]) -> Any:
            return wandb.init(
                project=config.project,
                entity=config.entity,
                group=group,
                job_type=job,
                name=f"{group}/{job}",
                config=settings,
                dir=str(folder),
                mode=mode,
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    x_disable_stats=False,
                    init_timeout=INIT_TIMEOUT_SECONDS,
                    finish_timeout=FINISH_TIMEOUT_SECONDS,
                ),
            )

        try:
            self._run = start("online" if wandb_is_online(config) else "offline")
        except wandb.Error as error:
            if not wandb_is_online(config):
                raise
            # Later stages, and the processes that they start, read the variable and don't wait again.
            os.environ["WANDB_MODE"] = "offline"
            warn(
                f"wandb can't be reached ({first_line(error)}); the run is logged offline. Upload it later with "
                f"`wandb sync {folder}/wandb/offline-run-*`."
            )
            self._run = start("offline")

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self._run.log({**values, **({"train/global_step": step} if step is not None else {})})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def result(self, values: dict[str, float | str]) -> None:
        self._run.summary.update(values)

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        if not self._run.offline:  # offline, wandb can't look up inputs; the metadata still lists them
            for used, used_key in inputs.items():
                self._run.use_artifact(self._make(used, used_key))
        artifact = self._make(name, key)
        artifact.metadata.update(folder=folder.name, inputs=inputs)
        self._run.log_artifact(artifact)

    def _make(self, name: str, key: str) -> Any:
        # Weights are not uploaded: the artifact holds only the cache key, which is enough to find the folder. A result
        # has the same cache key in every run, so it is one version of the artifact.
        artifact = self._wandb.Artifact(name=f"cai-{name}", type=name, metadata={"cache_key": key})
        with artifact.new_file("cache_key.txt") as file:
            file.write(key)
        return artifact

    def finish(self) -> None:
        self._run.finish()


class TrackioTracker:
    """Trackio: a local dashboard (``trackio show``) with its data in the output folder."""

    def __init__(self, config: TrackingConfig, group: str, job: str, settings: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TRACKIO_DIR", str(folder))
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=config.project, group=group, name=f"{group}-{job}", config=settings, embed=False, auto_log_cpu=False
        )

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self._trackio.log(values, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import pandas

        frame = pandas.DataFrame([list(row) for row in rows], columns=list(columns))
        self._trackio.log({name: self._trackio.Table(dataframe=frame)})

    def result(self, values: dict[str, float | str]) -> None:
        self._trackio.log({name: value for name, value in values.items() if not isinstance(value, str)})
        self.table("result", tuple(values), [tuple(values.values())])

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        rows = [["output", name, key], *(["input", used, used_key] for used, used_key in inputs.items())]
        self.table("lineage", ("role", "artifact", "cache_key"), rows)

    def finish(self) -> None:
        self._trackio.finish()


class TensorboardTracker:
    """TensorBoard event files, one folder per stage (``tensorboard --logdir``)."""

    def __init__(self, config: TrackingConfig, group: str, job: str, settings: dict[str, Any], folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / group / job))
        self._settings = settings
        self._writer.add_text("settings", _markdown(("field", "value"), sorted(_flatten(settings).items())))

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._writer.add_text(name, _markdown(columns, rows))

    def result(self, values: dict[str, float | str]) -> None:
        from torch.utils.tensorboard.summary import hparams

        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        words = {name: value for name, value in values.items() if isinstance(value, str)}
        # Without the first summary, which lists columns, TensorBoard takes the columns of all runs, not of one.
        # SummaryWriter.add_hparams would write it, and to a folder that TensorBoard shows as another run.
        _, start, end = hparams({**words, **_plain(self._settings)}, numbers)
        file: Any = self._writer.file_writer
        file.add_summary(start)
        file.add_summary(end)
        self.log(numbers)

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        rows = [("output", name, key), *(("input", used, used_key) for used, used_key in inputs.items())]
        self.table("lineage", ("role", "artifact", "cache_key"), rows)

    def finish(self) -> None:
        self._writer.close()


class _Careful:
    """Forwards every call until the dashboard fails once. Then it warns and ignores further calls."""

    def __init__(self, make: Callable[[], Tracker], kind: str) -> None:
        self._inner: Tracker = NoTracker()
        self._kind = kind
        self._try(lambda: setattr(self, "_inner", make()))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # an error in a dashboard must not stop the run
            failed, self._inner = self._inner, NoTracker()
            with suppress(Exception):
                failed.finish()  # what was logged before is written, and its threads and processes end
            keep_traceback(error)  # it may be a mistake of ours
            warn(f"tracking.kind={self._kind} stopped working ({first_line(error)}); the run continues without it.")

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        self._try(lambda: self._inner.log(numbers, step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._try(lambda: self._inner.table(name, columns, rows))

    def result(self, values: dict[str, float | str]) -> None:
        self._try(lambda: self._inner.result(values))

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        self._try(lambda: self._inner.artifact(name, key, folder, inputs))

    def finish(self) -> None:
        inner, self._inner = self._inner, NoTracker()  # a failed finish is not tried twice
        self._try(inner.finish)


_TRACKERS: dict[str, Callable[..., Tracker]] = {
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
    "tensorboard": TensorboardTracker,
}


def check_tracking(config: TrackingConfig) -> None:
    """Refuse a tracker that is not installed, or online mode without a key."""
    if config.kind != "none" and importlib.util.find_spec(config.kind) is None:
        raise ConfigError(
            f"tracking.kind is {config.kind!r}, which is not installed; pip install 'cai[{config.kind}]' or use "
            "tracking=none."
        )
    if config.kind == "wandb" and config.mode == "online" and not _has_wandb_key():
        raise ConfigError("tracking.mode is 'online' but wandb has no key; run `wandb login` or set mode=offline.")


def open_tracker(config: TrackingConfig, group: str, job: str, settings: dict[str, Any], folder: Path) -> Tracker:
    """Start tracking one stage of a run. ``folder`` is for the tracker's local files."""
    if config.kind == "none":
        return NoTracker()
    return _Careful(lambda: _TRACKERS[config.kind](config, group, job, settings, folder), config.kind)


def wandb_is_online(config: TrackingConfig) -> bool:
    if config.mode == "offline" or os.environ.get("WANDB_MODE") in {"offline", "disabled", "dryrun"}:
        return False
    return config.mode == "online" or _has_wandb_key()


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return netrc.is_file() and re.search(r"machine\s+\S*wandb", netrc.read_text(encoding="utf-8")) is not None


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _plain(settings: dict[str, Any]) -> dict[str, str | float | bool]:
    """Every setting as TensorBoard's table of runs takes it: a number, a truth value or text."""
    flat = _flatten(settings).items()
    return {name: value if isinstance(value, str | int | float | bool) else str(value) for name, value in flat}


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(value: Any) -> str:
        return str(value).replace("|", "\\|").replace("\n", "<br>")

    head = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return "\n".join(head + [f"| {' | '.join(map(cell, row))} |" for row in rows])
