"""One sentence for a mistake in a YAML file, with its file, line and column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.errors import ConfigError, did_you_mean

Loc = Sequence[str | int]  # the keys and indices on the way to a value, as pydantic gives them
STR, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
_MAX_SHOWN = 60
_READ_AS = {"int": "a number", "float": "a number", "bool": "yes or no", "timestamp": "a date", "null": "nothing"}
_HINTS = {
    "'\\t'": "; use spaces, not tabs",
    "mapping values are not allowed": "; put a text with ': ' in it in quotes",
    "cannot start any token": "; put a text that begins so in quotes",
}


def field_path(loc: Loc) -> str:
    """``principles[2].text``."""
    return re.sub(r"\.?\[", "[", ".".join(f"[{step}]" if isinstance(step, int) else step for step in loc))


def not_yaml(error: yaml.MarkedYAMLError) -> ConfigError:
    """PyYAML's own message, with a remedy for the usual mistakes."""
    problem = ", ".join(filter(None, (error.context, error.problem)))
    hint = next((hint for sign, hint in _HINTS.items() if sign in problem), "")
    return refusal(error.problem_mark, f"not valid YAML: {problem}{hint}")


def first_mistake(
    error: ValidationError, root: yaml.Node, adapter: TypeAdapter[Any], what: str, described_in: str
) -> ConfigError:
    """The first of pydantic's errors, and the number of the others.

    Args:
        root: what the file holds.
        what: what the file is, for example "a constitution".
        described_in: the page that describes the keys.
    """
    errors = error.errors()
    first, num_others = errors[0], len(errors) - 1
    loc, kind = first["loc"], first["type"]
    node = node_at(root, loc)
    mark = node.start_mark
    if kind == "extra_forbidden":
        problem = f"unknown key {loc[-1]!r}{did_you_mean(str(loc[-1]), _known_keys(adapter, loc[:-1]))}"
        mark = _key_at(node_at(root, loc[:-1]), loc[-1]).start_mark
    elif kind == "missing" and (misspelt := _misspelt(errors)):
        problem = f"{field_path(loc)} is missing; rename {misspelt!r} to {loc[-1]!r}"
        num_others -= 1  # the unknown key is the same mistake
    elif kind == "missing":
        problem = f"{field_path(loc)} is missing; add it ({described_in} describes every key)"
    elif not loc and kind.endswith("_type"):
        keys = _known_keys(adapter, ())
        wanted = f"a mapping with {', '.join(keys[:3])}, …" if keys else "a list"
        problem = f"{what} is {wanted}, but the file holds {shown_value(node)}; see {described_in}"
    else:
        problem = _wrong_value(first, node)
    return refusal(mark, problem, num_others)


def _misspelt(errors: Sequence[ErrorDetails]) -> str | None:
    """The unknown key that is spelt nearly like the missing key of the first error, in the same mapping."""
    *place, name = errors[0]["loc"]
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    beside = [str(loc[-1]) for loc in unknown if list(loc[:-1]) == place]
    return next(iter(get_close_matches(str(name), beside, n=1)), None)


def _wrong_value(error: ErrorDetails, node: yaml.Node) -> str:
    field, kind, shown = field_path(error["loc"]), error["type"], shown_value(node)
    if kind == "value_error":
        said = str(error["ctx"]["error"])
        if isinstance(node, yaml.ScalarNode):
            return f"{field} is {shown}; {said}"
        return f"{field}: {said}" if field else said
    if kind.endswith("too_short") or (kind.endswith("_type") and node.tag == NULL):
        return f"{field} is empty; write it or remove the entry"
    if kind == "string_type":
        return f"{field} is {shown}, which is not text; write text, in quotes if it has ': ' or brackets"
    if kind in {"list_type", "dict_type", "model_type"}:
        return f"{field} is {shown}, which is not a {'list' if kind == 'list_type' else 'mapping'}; write one"
    return f"{field} is {shown}; {re.sub('^Input', 'it', error['msg'])}"


def refusal(mark: Any, problem: str, num_others: int = 0) -> ConfigError:
    """``FILE:LINE:COLUMN: problem.``"""
    others = f" ({num_others} more after this one.)" if num_others else ""
    sentence = " ".join(problem.split())  # a key with a line break in it stays one line
    return ConfigError(f"{mark.name}:{mark.line + 1}:{mark.column + 1}: {sentence}.{others}")


def node_at(root: yaml.Node, loc: Loc) -> yaml.Node:
    """The deepest node on the way to ``loc``."""
    node = root
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            entry = next((value for key, value in node.value if key.value == step), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            entry = node.value[step]
        else:
            entry = None
        if entry is None:
            break
        node = entry
    return node


def _key_at(node: yaml.Node, name: str | int) -> yaml.Node:
    return next((key for key, _ in node.value if key.value == name), node)


def _known_keys(adapter: TypeAdapter[Any], loc: Loc) -> list[str]:
    """The keys that the model's JSON schema allows at a place."""
    whole = adapter.json_schema()
    parts = _alternatives(whole, whole.get("$defs", {}))
    for step in loc:
        inner = [
            part.get("items")
            if isinstance(step, int)
            else part.get("properties", {}).get(step, part.get("additionalProperties"))
            for part in parts
        ]
        parts = [found for part in inner if part for found in _alternatives(part, whole.get("$defs", {}))]
    return [key for part in parts for key in part.get("properties", {})]


def _alternatives(part: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives in a part of a JSON schema: references are followed, and unions are split."""
    if "$ref" in part:
        return _alternatives(definitions[part["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in part:
        return [found for option in part["anyOf"] for found in _alternatives(option, definitions)]
    return [part]


def shown_value(node: yaml.Node) -> str:
    """A value as it is in the file; text is quoted and shortened."""
    if not isinstance(node, yaml.ScalarNode):
        return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
    if node.tag == NULL:
        return "nothing"
    text = node.value if len(node.value) <= _MAX_SHOWN else f"{node.value[:_MAX_SHOWN]}…"
    return repr(text) if node.tag == STR else text


def meaning_of(node: yaml.Node) -> str:
    """What YAML reads a value as."""
    return _READ_AS.get(node.tag.rsplit(":", 1)[-1], "a special YAML sign")
