"""The JSON Schema of a constitution's file, with which an editor completes and checks keys while one types."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from pipeline.constitution.schema import POOL_TAGS, SLUG, Constitution

SCHEMA_FILE = "constitution.schema.json"
MODELINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""The first line of a file beside the schema: editors with yaml-language-server read it."""
MAY_BE_PATHS = ("contrasts", "worked_examples")
"""Keys of the file whose value may be the path of another file."""
_DRAFT = "http://json-schema.org/draft-07/schema#"  # the one that every editor reads


class _Schema(GenerateJsonSchema):
    """Without a title for each field: it would repeat the key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The schema of the file. The descriptions are the docstrings of the fields."""
    schema = Constitution.model_json_schema(schema_generator=_Schema)
    for key in MAY_BE_PATHS:
        _allow_path(schema["properties"][key])
    for name, part in schema["$defs"].items():
        part["properties"]["id"]["pattern"] = SLUG
        if name == "Principle":
            _suggest_tags(part["properties"]["tags"])
    schema["properties"]["name"]["pattern"] = SLUG
    return {"$schema": _DRAFT, **schema}


def json_schema_text() -> str:
    """The text of ``constitutions/constitution.schema.json``."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _allow_path(field: dict[str, Any]) -> None:
    listed = {name: field.pop(name) for name in ("type", "items")}
    path = {"type": "string", "minLength": 1, "description": "The path of a YAML file with the list."}
    field["anyOf"] = [listed, path]


def _suggest_tags(field: dict[str, Any]) -> None:
    """Complete the tags that decide for which prompts a principle is used. Any other tag is allowed, too."""
    deciding = sorted(frozenset().union(*POOL_TAGS.values()))
    field["items"] = {"anyOf": [{"enum": deciding}, field["items"]]}
