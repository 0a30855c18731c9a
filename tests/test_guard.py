"""The stage ``guard`` on a tiny model: it is made, evaluated beside the bare model, and shipped beside the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.order import tasks_of
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight
from pipeline.chain.runner import Run, run
from pipeline.core.errors import ConfigError
from pipeline.guard.results import Guarded
from pipeline.records import Verdict, read_records
from tests.conftest import tiny_overrides

GUARD = [
    "guard.enabled=true",
    "guard.max_false_alarms=0.3",
    "guard.num_prompts=40",
    "guard.num_replies=8",
    "guard.max_reply_tokens=12",
    "guard.check_every_tokens=4",
]


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    overrides = [*tiny_overrides(tiny_model, tmp_path_factory.mktemp("guarded")), *GUARD]
    return run(compose_config(overrides)), overrides


def test_a_run_makes_a_guard_and_evaluates_it_as_a_system(made: tuple[Run, list[str]]):
    done, _ = made
    [folder] = done.folder.glob("[0-9]*-evaluate")
    guarded = Guarded.model_validate_json((folder / "guarded.json").read_text(encoding="utf-8"))
    bare = [v for v in read_records(folder / "verdicts.jsonl", Verdict) if v.model == "aligned"]
    assert (guarded.model, guarded.system) == ("aligned", "aligned + guard")
    print(guarded.model_dump_json(indent=1)[:6000])
    assert sum(row.fired.total for row in guarded.alarms) + guarded.num_unread == len(bare)
