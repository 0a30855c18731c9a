"""Imports point one way (the layout is being rebuilt; the layers are narrowed as each step lands)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.name != "__init__.py")

# Lower floors know nothing of higher ones.
FLOORS = [
    {"records", "chat"},
    {"core", "chain", "constitution", "data", "engines", "labellers", "evals", "training", "methods"},
    {"report", "stages"},
    {"cli"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
ONLY_IN = {
    "trl": {"training", "methods"},
    "peft": {"training", "methods"},
    "wandb": {"core"},
    "trackio": {"core"},
    "openai": {"engines"},
    "hydra": {"chain"},
    "jinja2": {"report", "engines", "chat"},
}


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_every_room_has_a_floor():
    assert {room(path) for path in MODULES} == set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path):
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in ONLY_IN and parts[0] != "pipeline":
            assert room(path) in ONLY_IN[parts[0]], f"{path} imports {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) == "stages"], ids=str)
def test_a_stage_imports_no_other_stage_and_no_runner(path: Path):
    for name in imports(path):
        assert not name.startswith(
            ("pipeline.chain.runner", "pipeline.chain.launch", "pipeline.cli", "pipeline.chain.stages")
        ), name
        assert not name.startswith("pipeline.stages.") or name.startswith("pipeline.stages.base"), name


def test_only_the_renderer_applies_chat_templates():
    """Otherwise what is trained on could differ from what is sampled and scored."""
    callers = [path for path in MODULES if "apply_chat_template" in (ROOT / path).read_text(encoding="utf-8")]
    assert callers == [Path("chat.py")]


def test_stage_versions_are_those_of_the_modules():
    from pipeline.chain.stages import STAGES, VERSIONS

    assert {name: stage.module.VERSION for name, stage in STAGES.items()} == VERSIONS
