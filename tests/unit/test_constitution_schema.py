"""The JSON Schema accepts what the loader accepts, and marks the usual mistakes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from pipeline.cli import main
from pipeline.constitution.files import shipped_constitutions
from pipeline.constitution.json_schema import MODELINE, SCHEMA_FILE, json_schema, json_schema_text

SHIPPED = shipped_constitutions()
WHOLE = json_schema()
TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "number": (int, float)}
KNOWN = {"$schema", "$defs", "default", "description", "title"}  # they check nothing


def accepts(value: Any, schema: dict[str, Any]) -> bool:
    """As much of a validator as this schema needs. An unknown keyword fails, so that none is passed over."""
    checks = {
        "$ref": lambda name: accepts(value, WHOLE["$defs"][name.rsplit("/", 1)[-1]]),
        "anyOf": lambda options: any(accepts(value, option) for option in options),
        "enum": lambda values: value in values,
        "type": lambda name: isinstance(value, TYPES[name]),
        "pattern": lambda pattern: re.search(pattern, value) is not None,
        "minLength": lambda least: len(value) >= least,
        "minItems": lambda least: len(value) >= least,
        "minimum": lambda least: value >= least,
        "items": lambda inner: all(accepts(item, inner) for item in value),
        "required": lambda names: set(names) <= set(value),
        "additionalProperties": lambda allowed: allowed or set(value) <= set(schema["properties"]),
        "properties": lambda inner: all(accepts(value[name], part) for name, part in inner.items() if name in value),
    }
    assert set(schema) <= set(checks) | KNOWN
    ordered = sorted(set(schema) & set(checks), key=lambda name: name != "type")  # the others need the type
    return all(checks[name](schema[name]) for name in ordered)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_fit_it_and_name_it(name: str):
    text = SHIPPED[name].read_text(encoding="utf-8")
    assert text.splitlines()[0] == MODELINE
    assert accepts(yaml.safe_load(text), WHOLE)


def test_the_file_in_the_repository_is_current(capsys: pytest.CaptureFixture[str]):
    path = SHIPPED["default"].with_name(SCHEMA_FILE)
    assert path.read_text(encoding="utf-8") == json_schema_text(), (
        f"type: cai constitution schema > constitutions/{SCHEMA_FILE}"
    )
    assert main(["constitution", "schema"]) == 0
    assert capsys.readouterr().out == json_schema_text()


def minimal(**changed: Any) -> dict[str, Any]:
    return yaml.safe_load(SHIPPED["minimal"].read_text(encoding="utf-8")) | changed


@pytest.mark.parametrize("key", ["contrasts", "worked_examples"])
def test_a_list_may_be_the_path_of_a_file(key: str):
    assert accepts(minimal(**{key: "mine.yaml"}), WHOLE)
    assert not accepts(minimal(**{key: [{"id": "a"}]}), WHOLE)
    assert not accepts(minimal(**{key: ""}), WHOLE)


RULE: dict[str, Any] = minimal()["principles"][0]


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "two words"},
        {"description": ""},
        {"principels": []},
        {"principles": []},
        {"principles": [{name: text for name, text in RULE.items() if name != "title"}]},
        {"principles": [RULE | {"wieght": 1}]},
        {"principles": [RULE | {"weight": -1}]},
        {"principles": [RULE | {"id": "-"}]},
        {"revise": ["red-team"]},
        {"good_answers": "a path is read for two keys only"},
    ],
)
def test_mistakes_are_marked(changed: dict[str, Any]):
    assert not accepts(minimal(**changed), WHOLE)
    assert accepts(minimal(), WHOLE)


def test_an_editor_completes_the_tags_that_decide_and_explains_every_key():
    tags = WHOLE["$defs"]["Principle"]["properties"]["tags"]["items"]["anyOf"][0]["enum"]
    assert tags == ["harmlessness", "helpfulness", "honesty", "style"]
    assert accepts(minimal(principles=[RULE | {"tags": ["my own"]}]), WHOLE)
    for part in (WHOLE, *WHOLE["$defs"].values()):
        assert all(field["description"] for field in part["properties"].values())
