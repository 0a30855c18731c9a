"""What `cai plan` says, beside what a process of its own then writes and holds: within 25 %."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import load_script, tiny_overrides

ROOT = Path(__file__).parents[1]


def run_apart(*arguments: str) -> None:
    """A run in a new process, so that its memory is its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compared(run: Path) -> dict[tuple[str, str], tuple[float, float]]:
    rows = load_script("compare_plan").comparison(run)
    return {(stage, what): (planned, measured) for stage, what, planned, measured in rows}


def test_training_holds_the_memory_that_is_planned(tiny_model: Path, tmp_path: Path):
    run_apart("run", *tiny_overrides(tiny_model, tmp_path), "until=sft", "name=x")
    found = compared(tmp_path / "outputs" / "runs" / "x")
    for stage in ("critique", "sft"):
        planned, measured = found[stage, "GiB"]
        assert planned == pytest.approx(measured, rel=0.25), stage
    planned, measured = found["sft", "steps"]
    assert measured <= planned <= 1.25 * measured


def test_replies_of_full_length_write_the_tokens_that_are_planned(random_model: Path, tmp_path: Path):
    overrides = tiny_overrides(random_model, tmp_path)
    run_apart("run", *overrides, f"evaluate.checkpoints={{m: {random_model}}}", "until=evaluate", "name=x")
    found = compared(tmp_path / "outputs" / "runs" / "x")
    assert found["evaluate", "calls"][0] == found["evaluate", "calls"][1]
    planned, written = found["evaluate", "tokens written"]
    assert written <= planned <= 1.25 * written
    planned, measured = found["evaluate", "GiB"]
    assert planned == pytest.approx(measured, rel=0.25)
