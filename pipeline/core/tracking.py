"""The only place that sees wandb, trackio and tensorboard. One group a run, one job a stage.

A dashboard that fails must not cost the work it watches: its errors become one warning and tracking stops.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pipeline.core.errors import ConfigError
from pipeline.core.log import warn
from pipeline.core.settings import RUNTIME, Settings


class TrackingConfig(Settings):
    """Which dashboard shows the run. Nothing here is in a cache key."""

    kind: Annotated[Literal["wandb", "trackio", "tensorboard", "none"], RUNTIME] = "wandb"
    """The dashboard."""
    project: Annotated[str, RUNTIME] = "cai"
    """The project there."""
    entity: Annotated[str | None, RUNTIME] = None
    """wandb: the user or team; null: the default one."""
    mode: Annotated[Literal["auto", "online", "offline"], RUNTIME] = "auto"
    """wandb: ``auto`` goes online where a key is set."""


class Tracker(Protocol):
    def log(self, values: dict[str, float], step: int | None = None) -> None:
        """Numbers, at a step of training or once."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Text and numbers a person reads: transcripts, the evaluation table."""

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        """Say what was made (``name``, its cache key) from what (``inputs``: stage → its cache key)."""

    def finish(self) -> None: ...


class NoTracker:
    """Tracks nothing."""

    def log(self, values: dict[str, float], step: int | None = None) -> None: ...
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None: ...
    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None: ...
    def finish(self) -> None: ...


class WandbTracker:
    """Weights & Biases: online with a key, offline without (read with ``wandb leet``, upload with ``wandb sync``)."""

    def __init__(self, config: TrackingConfig, group: str, job: str, settings: dict[str, Any], folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=group,
            job_type=job,
            name=f"{group}/{job}",
            config=settings,
            dir=str(folder),
            mode="online" if wandb_is_online(config) else "offline",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=False),
        )

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self._run.log({**values, **({"train/global_step": step} if step is not None else {})})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        if not self._run.offline:  # offline, wandb can't look up what was used; the metadata still says it
            for used, used_key in inputs.items():
                self._run.use_artifact(self._make(used, used_key))
        artifact = self._make(name, key)
        artifact.metadata.update(folder=folder.name, inputs=inputs)
        self._run.log_artifact(artifact)

    def _make(self, name: str, key: str) -> Any:
        # Weights stay where they are: the artifact holds the cache key, which names the folder and is what lineage
        # needs. The same stage has the same cache key in every run, so it is one version when it is synced.
        artifact = self._wandb.Artifact(name=f"cai-{name}", type=name, metadata={"cache_key": key})
        with artifact.new_file("cache_key.txt") as file:
            file.write(key)
        return artifact

    def finish(self) -> None:
        self._run.finish()


class TrackioTracker:
    """Trackio: a local dashboard (``trackio show``), its data kept in the output folder."""

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

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        rows = [["output", name, key], *(["input", used, used_key] for used, used_key in inputs.items())]
        self.table("lineage", ("role", "artifact", "cache_key"), rows)

    def finish(self) -> None:
        self._trackio.finish()


class TensorboardTracker:
    """TensorBoard event files, one folder a stage (``tensorboard --logdir``)."""

    def __init__(self, config: TrackingConfig, group: str, job: str, settings: dict[str, Any], folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / group / job))
        self._writer.add_text("config", _markdown(("field", "value"), sorted(_flatten(settings).items())))

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._writer.add_text(name, _markdown(columns, rows))

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        rows = [("output", name, key), *(("input", used, used_key) for used, used_key in inputs.items())]
        self.table("lineage", ("role", "artifact", "cache_key"), rows)

    def finish(self) -> None:
        self._writer.close()


class _Careful:
    """Passes everything on until the dashboard fails once; then warns and goes on without it."""

    def __init__(self, make: Callable[[], Tracker], kind: str) -> None:
        self._inner: Tracker = NoTracker()
        self._kind = kind
        self._try(lambda: setattr(self, "_inner", make()))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever a dashboard raises, the run it watches goes on
            self._inner = NoTracker()
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warn(f"tracking.kind={self._kind} stopped working ({reason}); the run goes on without it.")

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
        self._try(lambda: self._inner.log(numbers, step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._try(lambda: self._inner.table(name, columns, rows))

    def artifact(self, name: str, key: str, folder: Path, inputs: dict[str, str]) -> None:
        self._try(lambda: self._inner.artifact(name, key, folder, inputs))

    def finish(self) -> None:
        self._try(self._inner.finish)


_TRACKERS: dict[str, Callable[..., Tracker]] = {
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
    "tensorboard": TensorboardTracker,
}


def check_tracking(config: TrackingConfig) -> None:
    """Refuse a tracker that is not installed, or online mode without a key, before anything is spent."""
    if config.kind != "none" and importlib.util.find_spec(config.kind) is None:
        raise ConfigError(
            f"tracking.kind is {config.kind!r}, which is not installed; pip install 'cai[{config.kind}]' or use "
            "tracking=none."
        )
    if config.kind == "wandb" and config.mode == "online" and not _has_wandb_key():
        raise ConfigError("tracking.mode is 'online' but wandb has no key; run `wandb login` or set mode=offline.")


def open_tracker(config: TrackingConfig, group: str, job: str, settings: dict[str, Any], folder: Path) -> Tracker:
    """Start tracking one stage of a run; ``folder`` keeps what the tracker writes locally."""
    if config.kind == "none":
        return NoTracker()
    return _Careful(lambda: _TRACKERS[config.kind](config, group, job, settings, folder), config.kind)


def wandb_is_online(config: TrackingConfig) -> bool:
    return config.mode == "online" or (config.mode == "auto" and _has_wandb_key())


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_MODE") in {"offline", "disabled", "dryrun"}:
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    return netrc.is_file() and re.search(r"machine\s+\S*wandb", netrc.read_text(encoding="utf-8")) is not None


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(value: Any) -> str:
        return str(value).replace("|", "\\|").replace("\n", "<br>")

    head = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return "\n".join(head + [f"| {' | '.join(map(cell, row))} |" for row in rows])
