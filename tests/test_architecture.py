"""Imports point one way, libraries stay where they belong, and there is no import circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pipeline

ROOT = Path(pipeline.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
# A part may import from those before it. Imports for type hints alone (TYPE_CHECKING) don't count.
ORDER = ["core", "records", "chat", "constitution", "data", "engines", "critique", "labellers", "writing", "evals",
         "guard", "adversary", "training", "methods", "explain", "report", "evidence", "stages", "chain", "daily",
         "cli"]  # fmt: skip
ONLY_IN = {
    "trl": {"training"},
    "peft": {"training", "methods"},
    "wandb": {"core"},
    "trackio": {"core"},
    "httpx2": {"engines"},
    "hydra": {"chain"},
    "jinja2": {"report", "chat", "engines"},
}


def part(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs, at the top or inside a function."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    hints = {id(node) for branch in branches for node in ast.walk(branch)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in hints:
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and id(node) not in hints:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_one_way(path: Path):
    own = part(path)
    for name in imports(path) if own != "__init__" else ():
        top, _, rest = name.partition(".")
        if top == "pipeline" and rest and (other := rest.split(".")[0]) in ORDER:
            assert ORDER.index(other) <= ORDER.index(own), f"{path} imports {name}"
        assert top not in ONLY_IN or own in ONLY_IN[top], f"{path} imports {name}"


def test_one_file_owns_messages_to_tokens_and_only_engines_know_the_engines():
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in FILES}
    assert [str(path) for path, text in texts.items() if "apply_chat_template" in text] == ["chat.py"]
    assert {part(path) for path, text in texts.items() if "HFEngine" in text} == {"engines"}


def test_a_stage_imports_no_other_stage():
    for path in FILES:
        if part(path) == "stages" and path.name != "__init__.py":
            assert not any(name.startswith("pipeline.stages.") for name in imports(path)), path
