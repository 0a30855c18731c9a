"""The stage ``write`` in a run: before ``prompts``, made once, and planned."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.chain.config import Config
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import run
from pipeline.data.loading import load_prompts
from pipeline.records import Prompt, WrittenPrompt, read_records
from tests.unit.test_writing import SETTINGS, FakeCritic


def test_a_run_writes_prompts_and_uses_them(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch):
    config = tiny(*SETTINGS, "until=prompts", "data.red_team.limit=null", "data.look_alike.limit=null")  # with twins
    harmful = {prompt.request for prompt in load_prompts(config.data).prompts if prompt.pool == "red_team"}
    critic = FakeCritic(harmful)
    monkeypatch.setattr("pipeline.stages.write.feedback_engine", lambda context: critic)
    [planned, _] = plan(preflight(config))
    result = run(config)
    assert list(result.stages) == ["write", "prompts"]
    manifest = result.stages["write"].manifest
    assert manifest.num_calls == planned.cost.num_calls == len(critic.asked)
    assert manifest.num_tokens_written <= planned.cost.num_tokens_written
    written = {row.id for row in read_records(result.folder / "1-write" / "written.jsonl", WrittenPrompt)}
    prompts = read_records(result.folder / "2-prompts" / "prompts.jsonl", Prompt)
    assert len(written) == 32 and written == {prompt.id for prompt in prompts if prompt.id.startswith("written-")}
    assert "red_team: 12 of 12 written prompts are kept" in (result.folder / "run.log").read_text(encoding="utf-8")
    again = run(config)
    assert all(finished.cached for finished in again.stages.values())
    without = run(tiny("until=prompts"))
    assert list(without.stages) == ["prompts"] and not without.stages["prompts"].manifest.fields["inputs"]
