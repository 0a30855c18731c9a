"""A run that is killed and started again gives the same outputs as a run without interruption."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.cache import Manifest
from tests.conftest import tiny_overrides

COMMAND = [sys.executable, "-m", "pipeline.cli", "run", "evaluate.guidelines=null"]


def contents(out: Path) -> dict[str, str]:
    """Content hash of every finished stage but the report, which tells times."""
    manifests = [Manifest.read(folder) for folder in (out / "outputs" / "cache").iterdir() if folder.is_dir()]
    return {m.stage: m.content_hash for m in manifests if m is not None and m.stage != "report"}


def has_rows(pattern: str) -> Callable[[Path], bool]:
    return lambda cache: any(path.stat().st_size for path in cache.glob(pattern))


# Each is reached with work left to do in that stage.
MOMENTS = {
    "first replies": has_rows("critique-*.partial/work/0-reply.rank0.jsonl"),
    "critiques": has_rows("critique-*.partial/work/1-critique.rank0.jsonl"),
    "a checkpoint of SFT": lambda cache: any(cache.glob("sft-*.partial/work/checkpoint-*/checkpoint.complete")),
    "labels": has_rows("preferences-*.partial/work/labels-answers.rank0.jsonl"),
    "a checkpoint of DPO": lambda cache: any(cache.glob("align-*.partial/work/checkpoint-*/checkpoint.complete")),
    "evaluation": has_rows("answers-*/replies.rank0.jsonl"),
}


@pytest.mark.parametrize("launch", [[], ["launch.num_processes=2"]], ids=["one process", "two ranks"])
def test_killed_and_resumed_equals_undisturbed(tiny_model: Path, tmp_path: Path, launch: list[str]):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    subprocess.run([*COMMAND, *tiny_overrides(tiny_model, undisturbed), *launch], check=True)
    command = [*COMMAND, *tiny_overrides(tiny_model, disturbed), *launch]
    cache = disturbed / "outputs" / "cache"
    num_kills = 0
    moments = MOMENTS if not launch else {name: MOMENTS[name] for name in ("critiques", "a checkpoint of DPO")}
    for reached in moments.values():
        process = subprocess.Popen(command)
        while process.poll() is None and not reached(cache):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            num_kills += 1
        process.wait()
    assert num_kills >= len(moments) - 1, "the moments were missed, so nothing was tested"
    subprocess.run(command, check=True)
    assert contents(disturbed) == contents(undisturbed)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on(tiny_model: Path, tmp_path: Path, number: int, exit_code: int):
    command = [*COMMAND, *tiny_overrides(tiny_model, tmp_path), "until=sft"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    reached = MOMENTS["first replies"]
    while process.poll() is None and not reached(tmp_path / "outputs" / "cache"):
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "stopped; run the same command again to continue." in errors and "Traceback" not in errors
    log = tmp_path / "outputs" / "runs" / "latest" / "run.log"
    assert "Traceback" not in log.read_text(encoding="utf-8")
    subprocess.run(command, check=True)
