"""The layouts of other tools that docs/migrate.md promises are read, and those that it says are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.core.errors import ConfigError
from pipeline.data.loading import load_prompts
from pipeline.evals.suites.pairs import human_pairs
from pipeline.records import Comparison, Message
from tests.doc_commands import ROOT, files_of

MIGRATE = ROOT / "docs" / "migrate.md"
ASKED = {"role": "user", "content": "What is rice?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("A grain.", "No idea."))
HUMAN, GPT = {"from": "human", "value": "What is rice?"}, {"from": "gpt", "value": "A grain."}
GPT_BAD = {"from": "gpt", "value": "No idea."}
TOOL = {"from": "function_call", "value": "{}"}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def read_prompt(path: Path, *columns: str) -> list[Message]:
    pool = ["data.ordinary.source=path", f"data.ordinary.path={path}", "data.min_prompts=0"]
    config = compose_config([*pool, *(f"data.ordinary.columns.{column}" for column in columns)])
    (prompt,) = (prompt for prompt in load_prompts(config.data).prompts if prompt.pool == "ordinary")
    return prompt.messages


def read_pair(path: Path) -> Comparison:
    config = compose_config(["align=rloo", "reward.human.source=path", f"reward.human.path={path}"])
    (pair,) = human_pairs(config.reward.human, [])
    return pair


PROMPTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "TRL, prompt only": ({"prompt": "What is rice?"}, []),
    "TRL, prompt and completion": ({"prompt": "What is rice?", "completion": "A grain."}, []),
    "TRL, preference": ({"prompt": "What is rice?", "chosen": "A grain.", "rejected": "No idea."}, []),
    "TRL, KTO": ({"prompt": "What is rice?", "completion": "A grain.", "label": True}, []),
    "TRL, turns": ({"prompt": [ASKED], "completion": [GOOD]}, ["messages=prompt"]),
    "TRL, language modelling": ({"messages": [ASKED, GOOD]}, ["messages=messages"]),
    "alpaca": ({"instruction": "What is rice?", "input": "", "output": "A grain."}, ["prompt=instruction"]),
    "sharegpt": ({"conversations": [HUMAN, GPT]}, ["messages=conversations"]),
    "ultrachat_200k": ({"prompt": "What is rice?", "prompt_id": "7", "messages": [ASKED, GOOD]}, ["id=prompt_id"]),
    "hh-rlhf": (
        {"chosen": "\n\nHuman: What is rice?\n\nAssistant: A grain.", "rejected": "\n\nHuman: …"},
        ["prompt=null", "transcript=chosen"],
    ),
}


@pytest.mark.parametrize("layout", PROMPTS)
def test_the_request_of_a_row_is_read(layout: str, tmp_path: Path):
    row, columns = PROMPTS[layout]
    text = MIGRATE.read_text(encoding="utf-8")
    for column in columns:
        assert f"data.POOL.columns.{column}" in text, "the page says what to type"
    assert read_prompt(write(tmp_path, "rows.jsonl", [row]), *columns) == [ASKED]


def test_turns_of_tools_are_refused(tmp_path: Path):
    path = write(tmp_path, "rows.json", [{"conversations": [HUMAN, TOOL, GPT]}])
    with pytest.raises(ConfigError, match="function_call"):
        read_prompt(path, "messages=conversations")


PAIRS: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": "What is rice?", "chosen": "A grain.", "rejected": "No idea."},
    "TRL, turns": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, dialogues": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "ultrafeedback_binarized": {
        "prompt": "What is rice?", "prompt_id": "7", "messages": [ASKED, GOOD], "chosen": [ASKED, GOOD],
        "rejected": [ASKED, BAD], "score_chosen": 8.0, "score_rejected": 5.0,
    },
    "cai-conversation-harmless": {
        "index": 1, "prompt": "What is rice?", "init_prompt": "…", "messages": [ASKED, GOOD], "chosen": [ASKED, GOOD],
        "rejected": [ASKED, BAD],
    },
    "hh-rlhf": {
        "chosen": "\n\nHuman: What is rice?\n\nAssistant: A grain.",
        "rejected": "\n\nHuman: What is rice?\n\nAssistant: No idea.",
    },
}  # fmt: skip


def assert_is_the_pair(pair: Comparison) -> None:
    assert pair.prompt.messages == [ASKED]
    assert {pair.reply_a, pair.reply_b} == {"A grain.", "No idea."}


@pytest.mark.parametrize("layout", PAIRS)
def test_a_pair_is_read(layout: str, tmp_path: Path):
    assert_is_the_pair(read_pair(write(tmp_path, "rows.jsonl", [PAIRS[layout]])))


OTHER_PAIRS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "What is rice?", "input": "", "chosen": "A grain.", "rejected": "No idea."},
    "sharegpt": {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT_BAD},
}


@pytest.mark.parametrize("layout", OTHER_PAIRS)
def test_pairs_of_llama_factory_are_read_when_they_are_converted(layout: str, tmp_path: Path):
    there = write(tmp_path, "there.json", [OTHER_PAIRS[layout]])
    with pytest.raises(ConfigError):
        read_pair(there)
    assert_is_the_pair(read_pair(convert(there)))


def convert(path: Path) -> Path:
    """What ``convert.py`` of the page makes of a file."""
    script, made = path.with_name("convert.py"), path.with_name("converted.jsonl")
    script.write_text(files_of(MIGRATE)["convert.py"], encoding="utf-8")
    subprocess.run([sys.executable, script, path, made], check=True)
    return made


def test_a_converted_row_of_alpaca_has_its_input_system_and_history(tmp_path: Path):
    row = {
        "instruction": "Translate.", "input": "Reis", "output": "rice", "system": "Be brief.",
        "history": [["Hello", "Hi."]],
    }  # fmt: skip
    assert read_prompt(convert(write(tmp_path, "there.json", [row])), "messages=prompt") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Translate.\nReis"},
    ]


def test_rows_for_kto_are_no_pairs(tmp_path: Path):
    with pytest.raises(ConfigError, match="match none of the layouts"):
        read_pair(write(tmp_path, "rows.jsonl", [{"prompt": "What is rice?", "completion": "A grain.", "label": True}]))


@pytest.mark.parametrize(
    ("kind", "more", "sharding"),
    [("MULTI_GPU", {}, "none"), ("DEEPSPEED", {"deepspeed_config": {"zero_stage": 3}}, "zero3"), ("FSDP", {}, None)],
)
def test_files_of_accelerate(kind: str, more: dict[str, Any], sharding: str | None, tmp_path: Path):
    common = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 8, "machine_rank": 0}
    path = write(tmp_path, "accelerate.json", [])
    path.write_text(
        json.dumps({**common, "distributed_type": kind, "mixed_precision": "bf16", "use_cpu": False, **more})
    )
    overrides = [f"launch.accelerate_config={path}"]
    if sharding is None:
        with pytest.raises(ConfigError, match="old FSDP"):
            compose_config(overrides)
    else:
        assert compose_config(overrides).launch.sharding == sharding
