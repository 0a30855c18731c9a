"""What no run refers to is found and removed, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.core.cache import Manifest, cache_key
from pipeline.core.locks import lock_of

EMPTY = {
    "fields": {},
    "outputs": {},
    "content_hash": "x",
    "metrics": {},
    "seconds": 1.0,
    "busy_seconds": 0.0,
    "num_calls": 0,
    "num_tokens_written": 0,
    "started": "now",
    "environment": {},
}


def stage(cache: Path, name: str, **inputs: str) -> Path:
    folder = cache / name
    folder.mkdir(parents=True)
    manifest = Manifest(stage=name.partition("-")[0], cache_key=cache_key({"name": name}), inputs=inputs, **EMPTY)
    (folder / "manifest.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    (folder / "rows.jsonl").write_text("x" * 100, encoding="utf-8")
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """One run with a link to ``sft-1``, which was made from ``prompts-1``; it is making ``align-1``."""
    cache, run = tmp_path / "outputs" / "cache", tmp_path / "outputs" / "runs" / "mine"
    for name, inputs in (
        ("prompts-1", {}), ("prompts-2", {}), ("sft-1", {"prompts": "prompts-1"}), ("sft-2", {"prompts": "prompts-1"}),
    ):  # fmt: skip
        stage(cache, name, **inputs)
    for name in ("align-1.partial", "align-2.partial", "answers-1", "sft-3.damaged-17"):
        (cache / name).mkdir()
    run.mkdir(parents=True)
    (run / "3-sft").symlink_to("../../cache/sft-1")
    (run / "run.json").write_text(json.dumps({"name": "mine", "stages": {}, "making": "align-1"}), encoding="utf-8")
    (run.parent / "latest").symlink_to("mine")
    return tmp_path / "outputs"


KEPT = {"prompts-1", "sft-1", "align-1.partial", "sft-3.damaged-17", "answers-1"}


def names(outputs: Path) -> set[str]:
    return {path.name for path in (outputs / "cache").iterdir() if path.name != ".locks"}


def test_only_what_no_run_refers_to_is_removed(outputs: Path, capsys: pytest.CaptureFixture[str]):
    before = names(outputs)
    assert main(["clean", "--output-dir", str(outputs)]) == 0  # nobody can be asked here
    printed = capsys.readouterr()
    assert names(outputs) == before and "nothing was removed" in printed.err
    assert {line.split()[-1] for line in printed.out.splitlines() if "GiB  " in line} - {"GiB"} == before - KEPT
    assert main(["clean", "--output-dir", str(outputs), "--yes"]) == 0
    assert names(outputs) == KEPT and "removed 3 of 3" in capsys.readouterr().err
    assert main(["clean", "--output-dir", str(outputs), "--yes", "--answers"]) == 0
    assert names(outputs) == KEPT - {"answers-1"}
    assert main(["clean", "--output-dir", str(outputs), "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().err


def test_sizes_and_names_as_json(outputs: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["clean", "--output-dir", str(outputs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_runs"] == 1 and found["removed"] == []
    entries = {entry["name"]: entry for entry in found["entries"]}
    assert {name for name, entry in entries.items() if entry["used"]} == {"prompts-1", "sft-1", "align-1.partial"}
    assert entries["sft-2"]["size_bytes"] == sum(
        path.stat().st_size for path in (outputs / "cache" / "sft-2").iterdir()
    )


def test_what_a_run_is_making_stays(outputs: Path, capsys: pytest.CaptureFixture[str]):
    with lock_of(outputs / "cache" / ".locks" / "align-2", False).acquire():
        assert main(["clean", "--output-dir", str(outputs), "--yes"]) == 0
    assert "align-2.partial" in names(outputs) and "prompts-2" not in names(outputs)
    assert "align-2.partial is being made by a run, so it stays" in capsys.readouterr().err


def test_where_nothing_is_known_nothing_is_removed(outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = names(outputs)
    (outputs / "runs" / "mine" / "run.json").write_text("{", encoding="utf-8")
    assert main(["clean", "--output-dir", str(outputs), "--yes"]) == 1
    assert names(outputs) == before and "run.json is damaged" in capsys.readouterr().err
    assert main(["clean", "--output-dir", str(tmp_path / "none")]) == 2
    assert "where no run has been made" in capsys.readouterr().err
