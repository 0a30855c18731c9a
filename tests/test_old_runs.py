"""What an earlier version left behind is ignored where it is a cache, and refused in one sentence where it is a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.cli import main

Tiny = Callable[..., Config]
OLD_CONFIG = {
    "model": {"name": "tiny", "path": "x", "lora": {"rank": 16}},
    "preferences": {"labeller": "ab", "num_principles": 1},
    "align": {"method": "ppo", "ppo": {"max_kl": 20.0}},
    "report": {"num_transcripts": 12},
}
OLD_MANIFEST = {"stage": "prompts", "fingerprint": "0" * 64, "identity": {}, "inputs": {}, "outputs": {}}


def test_an_old_cache_is_ignored(tiny: Tiny, tmp_path: Path):
    cache = tmp_path / "outputs" / "cache"
    for name in ("prompts-0123456789abcdef", "critique-fedcba9876543210.partial"):
        (cache / name).mkdir(parents=True)
        (cache / name / "manifest.json").write_text(json.dumps(OLD_MANIFEST))
    result = run(tiny("until=prompts"))
    assert not result.stages["prompts"].cached and (cache / "prompts-0123456789abcdef" / "manifest.json").exists()


@pytest.mark.parametrize("command", ["status", "report"])
def test_an_old_run_is_refused_in_one_sentence(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "outputs" / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(OLD_CONFIG))
    assert main([command, "old", "--output-dir", str(tmp_path / "outputs")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "was written by another version" in line
