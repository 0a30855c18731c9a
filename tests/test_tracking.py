"""Dashboards get configuration, losses, tables and lineage; one that fails costs nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.core import tracking
from pipeline.core.errors import ConfigError
from pipeline.core.log import LOG_FILE
from tests.conftest import tiny_overrides

Tiny = Callable[..., Config]


def test_tensorboard_gets_losses_text_and_table(tiny: Tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(tiny("tracking=tensorboard"))
    folder = Path(result.folder).parents[1] / "tracking" / result.name
    assert {path.name for path in folder.iterdir()} == set(result.stages)
    events = EventAccumulator(str(folder / "align"))
    events.Reload()
    assert {"train/loss", "train/rewards/margins"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss")) == result.stages["align"].manifest.metrics["num_steps"]
    events = EventAccumulator(str(folder / "evaluate"))
    events.Reload()
    assert any(tag.startswith("evaluate/table") for tag in events.Tags()["tensors"])
    assert "evaluate/aligned/harmful_complied" in events.Tags()["scalars"]


def test_wandb_offline_can_be_read_back(tiny: Tiny):
    result = run(tiny("tracking=wandb", "until=sft"))
    runs = sorted((Path(result.folder).parents[1] / "tracking" / "wandb").glob("offline-run-*"))
    assert len(runs) == 3
    summary = ""
    for folder in runs:
        shown = subprocess.run(
            [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", str(folder)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        summary += shown.stdout
    assert "train/loss" in summary and "critique/num_revisions" in summary


def test_trackio_writes_its_database(tiny_model: Path, tmp_path: Path):
    """In a process of its own: trackio reads its folder when it is first imported."""
    overrides = [*tiny_overrides(tiny_model, tmp_path), "tracking=trackio", "until=prompts"]
    subprocess.run([sys.executable, "-m", "pipeline.cli", "run", *overrides], check=True)
    folder = tmp_path / "outputs" / "tracking"
    assert list(folder.rglob("*.db")) or list(folder.rglob("*.parquet"))


def test_a_failing_dashboard_costs_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys):
    closed: list[bool] = []

    class Broken(tracking.NoTracker):
        def __init__(self, *args: object) -> None: ...

        def finish(self) -> None:
            closed.append(True)

        def log(self, values: dict[str, float], step: int | None = None) -> None:
            raise ConnectionError("the server is gone")

    monkeypatch.setitem(tracking._TRACKERS, "tensorboard", Broken)
    warnings: list[str] = []
    monkeypatch.setattr(tracking, "warn", warnings.append)
    result = run(tiny("tracking=tensorboard", "until=prompts"))
    assert "prompts" in result.stages
    assert len(warnings) == 1 and "the server is gone" in warnings[0]
    assert closed == [True]
    log = (Path(result.folder) / LOG_FILE).read_text(encoding="utf-8")
    assert "ConnectionError: the server is gone" in log and "Traceback" in log, "it could be our own mistake"


def test_wandb_goes_offline_once_where_its_server_can_not_be_reached(tiny: Tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_SECONDS", 5.0)
    warnings: list[str] = []
    monkeypatch.setattr(tracking, "warn", warnings.append)
    result = run(tiny("tracking=wandb", "until=critique"))
    assert len(warnings) == 1 and "can't be reached" in warnings[0] and "wandb sync" in warnings[0]
    folders = sorted((Path(result.folder).parents[1] / "tracking" / "wandb").glob("offline-run-*"))
    assert len(folders) == len(result.stages) == 2


def test_trackers_are_checked_before_anything_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", "nowhere")
    with pytest.raises(ConfigError, match="wandb has no key"):
        tracking.check_tracking(compose_config(["tracking=wandb", "tracking.mode=online"]).tracking)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cai\[trackio\]'"):
        tracking.check_tracking(compose_config(["tracking=trackio"]).tracking)
