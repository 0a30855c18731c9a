"""Data with a system turn and a template that rejects it: every stage runs, and the text of the turn is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.runner import run
from pipeline.data.loading import load_prompts
from pipeline.records import Exchange, read_records
from tests.conftest import tiny_overrides

SYSTEM = "You are a clerk."
REFUSING = (
    "{% for m in messages %}{% if m.role != ('assistant' if loop.index0 % 2 else 'user') %}"
    "{{ raise_exception('a person and the assistant take turns') }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def overrides(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("system-turns")
    model = out / "model"
    shutil.copytree(tiny_model, model)
    template = model / "chat_template.jinja"
    template.write_text(REFUSING + template.read_text())
    prompts = [prompt for prompt in load_prompts(compose_config([]).data).prompts if prompt.pool == "red_team"]
    rows = [{"messages": [{"role": "system", "content": SYSTEM}, *prompt.messages]} for prompt in prompts[:60]]
    data = out / "red_team.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"model.path={model}",
        "data=local",
        f"data.red_team.path={data}",
        "data.red_team.columns.messages=messages",
        "data.red_team.columns.prompt=null",
        "evaluate.guidelines=null",
    ]


@pytest.mark.parametrize("method", ["dpo", "kto", "ppo"])
def test_the_chain_runs_to_the_end(overrides: list[str], method: str):
    model, *data = overrides
    path = Path(model.partition("=")[2])
    result = run(compose_config([*tiny_overrides(path, path.parent, f"align={method}"), *data]))
    assert (result.folder / "report.html").exists() and "evaluate" in result.stages
    exchanges = read_records(result.stages["critique"].folder / "exchanges.jsonl", Exchange)
    first_turns = {exchange.prompt.messages[0]["content"] for exchange in exchanges if exchange.revisions}
    assert first_turns == {SYSTEM}
    counted = ["sft", "align"] if method != "ppo" else ["sft"]
    for stage in counted:
        assert result.stages[stage].manifest.metrics["num_rows_cut"] == 0
