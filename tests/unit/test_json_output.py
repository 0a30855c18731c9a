"""Every command that prints a table prints the same as one JSON value, and nothing else, with ``--json``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.cli.parser import parser
from tests.conftest import tiny_overrides

Ask = Callable[..., Any]
NO_TABLE = {
    "run",
    "evaluate",
    "redteam",
    "explain",
    "report",
    "chat",
    "dashboard",
    "export",
    "bundle",
    "approve",
    "completion",
}  # they print progress, or talk


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    def asked(*words: str) -> Any:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return asked


def test_every_command_with_a_table_has_the_option():
    [commands] = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    without = {
        name for name, command in commands.choices.items()
        if name != "constitution" and "--json" not in command._option_string_actions
    }  # fmt: skip
    assert without == NO_TABLE


def test_the_plan(ask: Ask, tiny_model: Path, tmp_path: Path):
    plan = ask("plan", *tiny_overrides(tiny_model, tmp_path))
    assert [step["stage"] for step in plan["stages"]][:3] == ["prompts", "critique", "sft"]
    assert plan["stages"][1]["cost"]["num_calls"] > 0 and isinstance(plan["warnings"], list)
    assert any("instead of" in sentence for sentence in plan["deviations"])


def test_settings_and_constitutions(ask: Ask):
    settings = {row["key"]: row for row in ask("config", "sft")}
    assert settings["sft.num_epochs"]["meaning"] and all(key.startswith("sft.") for key in settings)
    assert {row["name"] for row in ask("constitution", "list")} == {"default", "minimal", "plain_speech"}
    [*_, last] = ask("constitution", "diff", "minimal", "default")
    assert last["what"] == "added" and last["pieces"]
