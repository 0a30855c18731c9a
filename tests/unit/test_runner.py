"""Folders of a run that are links, and errors of the machine that become one sentence."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from pipeline.chain.checkpoints import with_checkpoints
from pipeline.chain.compose import compose_config
from pipeline.chain.config import to_plain
from pipeline.chain.runner import _explained, _holds
from pipeline.chain.runs import status
from pipeline.core.cache import MANIFEST, Manifest, link
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.log import LOG_FILE, logged_to


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full; free some space"),
        (ValueError("I/O error: No space left on device (os error 28)"), "is full; free some space"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "the disk of /tmp/x is full"),
        (MemoryError(), "out of memory; lower launch.batch_rows"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; lower launch.batch_rows"),
    ],
)
def test_a_full_disk_and_too_little_memory_are_one_sentence(error: Exception, expected: str):
    with pytest.raises(StageError, match=expected), _explained("sft", Path("cache/sft.partial")):
        raise error


def test_the_log_has_what_was_taken_for_too_little_memory(tmp_path: Path):
    with pytest.raises(StageError), logged_to(tmp_path), _explained("sft", tmp_path):
        raise MemoryError("of a mistake in line 7")
    text = (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert "sft: out of memory" in text and "MemoryError: of a mistake in line 7" in text


def test_anything_else_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError), _explained("sft", Path("cache/sft.partial")):
        raise ZeroDivisionError


MADE = {
    "stage": "prompts",
    "cache_key": "",
    "fields": {},
    "inputs": {},
    "outputs": {},
    "content_hash": "",
    "metrics": {},
    "seconds": 1,
    "busy_seconds": 1,
    "num_calls": 0,
    "num_tokens_written": 0,
    "started": "",
    "environment": {},
}


@pytest.mark.parametrize("moved", ["", "outputs", "outputs/runs", "outputs/cache", "outputs/runs/mine"])
def test_a_folder_of_the_outputs_may_be_a_link_to_another_disk(tmp_path: Path, moved: str):
    if moved:
        elsewhere = tmp_path / "disk" / "deep" / "down"
        elsewhere.mkdir(parents=True)
        (tmp_path / moved).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / moved).symlink_to(elsewhere)
    outputs = tmp_path / "outputs"
    made, run = outputs / "cache" / "prompts-1", outputs / "runs" / "mine"
    made.mkdir(parents=True, exist_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    (made / MANIFEST).write_text(Manifest.model_validate(MADE).model_dump_json())
    (run / "config.json").write_text(json.dumps(to_plain(compose_config([]))))
    (run / "run.json").write_text(json.dumps({"stages": {"prompts": made.name}, "making": None}))
    link(made, run / "1-prompts")
    link(run, run.parent / "latest")
    assert (run / "1-prompts" / MANIFEST).is_file() and (outputs / "runs" / "latest" / "1-prompts" / MANIFEST).is_file()
    for name in ("mine", "latest"):
        assert status(str(outputs), name)[0][:2] == ("prompts", "done")


def test_a_mistyped_run_is_named_with_the_nearest_run(tmp_path: Path):
    (tmp_path / "runs" / "plain-speech" / "checkpoint").mkdir(parents=True)
    (tmp_path / "runs" / "plain-speech" / "checkpoint" / "config.json").write_text("{}")
    config = compose_config([f"output_dir={tmp_path}"])
    near = "there is no run or model 'plain_speech'; did you mean 'plain-speech'?"
    with pytest.raises(ConfigError, match=f"^CHECKPOINT: {near}"):
        with_checkpoints(config, "plain_speech", None)
    with pytest.raises(ConfigError, match=f"^--base: {near}"):
        with_checkpoints(config, "plain-speech", "plain_speech")
    with pytest.raises(ConfigError, match=r"^CHECKPOINT: 'nosuch' is .*; or give a run; known: plain-speech"):
        with_checkpoints(config, "nosuch", None)
    with pytest.raises(ConfigError, match=r"^CHECKPOINT: there is no model folder \./gone; give a folder"):
        with_checkpoints(config, "./gone", None)


def test_a_run_from_before_a_setting_was_there_is_known_and_keeps_its_report(tmp_path: Path):
    config = compose_config([])
    plain = to_plain(config)
    del plain["engine"]["quantization"]
    (tmp_path / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    assert _holds(tmp_path, config) and not _holds(tmp_path, compose_config(["seed=1"]))
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert not _holds(tmp_path, config)
