"""Dashboards get configuration, losses, tables and lineage; one that fails costs nothing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.core import tracking
from pipeline.core.errors import ConfigError
from pipeline.core.log import LOG_FILE
from pipeline.evals.summary import NUM_CASES_SHOWN
from pipeline.evals.summary import track as track_replies
from pipeline.stages.report import track as track_report
from tests.conftest import tiny_overrides
from tests.report_data import make_report

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
    events = EventAccumulator(str(folder / "report"))
    events.Reload()
    assert {"gate/text_summary", "changes/text_summary"} <= set(events.Tags()["tensors"])
    assert "result/harmful_complied" in events.Tags()["scalars"]
    row = hyperparameters(folder / "report")
    assert row["gate"] == result.gate and row["seed"] == 0 and row["constitution"].startswith("minimal")
    assert row["sft.global_batch_size"] == "2", "what differs from the default run is a column"
    assert "sft.learning_rate" not in row, "and what does not, is none"


def hyperparameters(folder: Path) -> dict[str, Any]:
    """A row of TensorBoard's table of runs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder))
    events.Reload()
    assert "_hparams_/experiment" not in events.summary_metadata, "TensorBoard would show the columns of one run"
    found = HParamsPluginData()
    found.ParseFromString(events.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
    values = found.session_start_info.hparams
    return {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in values.items()}


class Kept(tracking.NoTracker):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.tables: dict[str, tuple[Any, Any]] = {}
        self.came_to: dict[str, float | str] = {}

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.tables[name] = (columns, rows)

    def result(self, values: dict[str, float | str]) -> None:
        self.came_to = values


def test_gate_changes_and_sample_replies_are_shown():
    report, kept = make_report(), Kept()
    track_report(report, kept)
    assert report.gate
    columns, rows = kept.tables["gate"]
    assert [dict(zip(columns, row, strict=True))["verdict"] for row in rows] == [r.verdict for r in report.gate.rulings]
    assert len(kept.tables["changes"][1]) == sum(change.difference is not None for change in report.results.changes)
    found = report.results.measures["aligned"]["harmful_complied"].value
    assert kept.came_to["gate"] == report.gate.verdict and kept.came_to["result/harmful_complied"] == found

    track_replies(report.verdicts, report.results, kept)
    cases = {verdict.case.id for verdict in report.verdicts}
    _, rows = kept.tables["evaluate/replies"]
    shown = {row[0] for row in rows}
    assert len(cases) > 2 * NUM_CASES_SHOWN and NUM_CASES_SHOWN / 2 <= len(shown) <= NUM_CASES_SHOWN
    models = [row[1].partition(":")[0] for row in rows]
    assert models[:3] == report.results.models and len(rows) % 3 == 0, "the replies to one prompt stand together"


def test_trackio_keeps_the_result_of_each_run_of_a_sweep(tmp_path: Path):
    """In a process of its own, as below."""
    code = (
        "import sys; from pathlib import Path; from pipeline.core.tracking import TrackingConfig, open_tracker\n"
        "config, folder = TrackingConfig(kind='trackio'), Path(sys.argv[1])\n"
        "for seed in (0, 1):\n"
        "    tracker = open_tracker(config, f'run{seed}', 'report', {'seed': seed}, folder)\n"
        "    tracker.result({'gate': 'FAIL', 'result/harmful_complied': 0.25 + seed})\n"
        "    tracker.finish()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
    with sqlite3.connect(tmp_path / "cai.db") as database:
        logged = [
            (run, json.loads(values)) for run, values in database.execute("select run_name, metrics from metrics")
        ]
    numbers = {run: row["result/harmful_complied"] for run, row in logged if "result/harmful_complied" in row}
    assert numbers == {"run0-report": 0.25, "run1-report": 1.25}
    assert "FAIL" in json.dumps([row["result"] for _, row in logged if "result" in row])


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


def test_the_result_is_in_the_summary_of_wandb(tmp_path: Path):
    tracker = tracking.open_tracker(tracking.TrackingConfig(kind="wandb"), "mine", "report", {"seed": 3}, tmp_path)
    tracker.result({"gate": "UNDECIDED", "result/harmful_complied": 0.25})
    tracker.finish()
    [folder] = (tmp_path / "wandb").glob("offline-run-*")
    wandb = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", str(folder)]
    shown = subprocess.run(wandb, capture_output=True, text=True, check=True).stdout
    assert "UNDECIDED" in shown and "result/harmful_complied" in shown


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
    monkeypatch.delenv("WANDB_MODE")  # an empty one is no mode to wandb
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
