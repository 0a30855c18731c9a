"""A real run on the tiny model: its log, its bundle, its approval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.cli import main
from pipeline.cli.codes import exit_code
from pipeline.evidence.approve import approval_of
from pipeline.evidence.events import read_events
from pipeline.evidence.verify import verify

ASKING = """\
name: toy
version: 1.0.0
description: One limit.
approval: required
guidelines:
  - {id: bold, title: It complies, why: Tests., measure: harmful_complied, at_most: 1}
"""


def test_a_run_is_logged_bundled_verified_and_approved(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("CAI_BY", raising=False)
    (tmp_path / "asking.yaml").write_text(ASKING)
    config = tiny(f"evaluate.guidelines={tmp_path / 'asking.yaml'}")
    done = run(config)
    assert (done.gate, exit_code(done.ending)) == ("PASS", 4)
    out = ["--output-dir", config.output_dir]
    tasks = list(done.stages)
    events = read_events(done.folder)
    assert [event.what for event in events] == ["run started", *["stage"] * len(tasks), "report"]
    assert [event.details["task"] for event in events[1:-1]] == tasks
    assert not any(event.details["cached"] for event in events[1:-1]) and {event.by for event in events} == {None}

    assert main(["bundle", "latest", *out]) == 0
    bundle = Path(capsys.readouterr().out.splitlines()[-1])
    found = verify(bundle)
    assert not found.problems
    assert found.said["approval"] == "it awaits approval (cai approve)"
    assert [sentence[:4] for sentence in found.left_out] in ([], ["AUCs"]), "everything else is counted again"
    assert json.loads((bundle / "checkpoint.json").read_text()).keys() >= {"model.safetensors", "tokenizer.json"}

    assert main(["approve", "latest", "--by", "A. Person", "--note", "fine", *out]) == 0
    assert main(["report", "latest", *out]) == 0, "the report is written again as it was"
    again = run(config)
    assert exit_code(again.ending) == 0 and approval_of(again.folder).valid
    assert all(event.details["cached"] for event in read_events(done.folder)[-len(tasks) - 1 : -1])
