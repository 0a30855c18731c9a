"""``cai dashboard`` starts what shows a run's tracker."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.chain.config import Config, to_plain
from pipeline.cli import main
from pipeline.daily.dashboard import dashboard_of

Make = Callable[..., Path]


@pytest.fixture
def run(tiny: Callable[..., Config], tmp_path: Path) -> Make:
    """A run whose tracker has kept something."""

    def make(*overrides: str) -> Path:
        folder = tmp_path / "outputs" / "runs" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outputs" / "tracking").mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(to_plain(tiny(*overrides))), encoding="utf-8")
        return tmp_path / "outputs"

    return make


def test_each_tracker_is_started_with_the_folder_of_the_run(run: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    outputs = run("tracking=wandb")
    assert dashboard_of(str(outputs), "mine", None).program[-2:] == ["leet", str(outputs / "tracking" / "wandb")]
    run("tracking=trackio")
    show = dashboard_of(str(outputs), "mine", 7)
    assert show.environment == {"TRACKIO_DIR": str(outputs / "tracking"), "GRADIO_SERVER_PORT": "7"}
    assert "trackio.show(project='cai')" in show.program[-1]
    run("tracking=tensorboard")
    assert dashboard_of(str(outputs), "mine", 7).program[-4:] == [
        "--logdir", str(outputs / "tracking"), "--port", "7",
    ]  # fmt: skip


def test_wandb_with_a_key_is_a_page(run: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    outputs = run("tracking=wandb", "tracking.entity=team")
    assert main(["dashboard", "mine", "--output-dir", str(outputs)]) == 0
    assert opened == ["https://wandb.ai/team/cai"] and "secret-key" not in capsys.readouterr().err


def test_the_program_gets_the_environment_and_gives_the_exit_code(run: Make, monkeypatch: pytest.MonkeyPatch):
    started: list[dict[str, str]] = []

    def start(program: list[str], env: dict[str, str], check: bool) -> SimpleNamespace:
        started.append(env)
        return SimpleNamespace(returncode=9)

    outputs = run("tracking=trackio")
    monkeypatch.setattr(subprocess, "run", start)
    assert main(["dashboard", "mine", "--output-dir", str(outputs)]) == 9
    assert started[0]["TRACKIO_DIR"] == str(outputs / "tracking") and "PATH" in started[0]


def test_what_cant_be_shown_is_one_sentence(run: Make, capsys: pytest.CaptureFixture[str]):
    outputs = run("tracking=none")
    assert main(["dashboard", "mine", "--output-dir", str(outputs)]) == 2
    assert "so nothing was tracked; its report is" in capsys.readouterr().err
    run("tracking=tensorboard")
    (outputs / "tracking").rmdir()
    assert main(["dashboard", "mine", "--output-dir", str(outputs)]) == 2
    assert "is not there any more" in capsys.readouterr().err
    assert main(["dashboard", "other", "--output-dir", str(outputs)]) == 2
