"""Reads and validates YAML files. A mistake becomes one sentence with the file, line and column.

Each node that PyYAML composes knows its file and position. So one file can include another one (a constitution
includes its contrasts), and a mistake in the included file still gets the right place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from pipeline.core.errors import ConfigError, did_you_mean

Loc = Sequence[str | int]  # the keys and indices on the way to a value, as pydantic gives them
Problem = tuple[Loc, str]  # a place, and what is wrong there with the remedy, without a full stop
ModelT = TypeVar("ModelT")

_MAX_DEPTH = 32  # real files are far less deep; without this limit, Python raises a RecursionError
_MAX_SHOWN = 60
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
_STR, _NULL, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
_READ_AS = {"int": "a number", "float": "a number", "bool": "yes or no", "timestamp": "a date", "null": "nothing"}
_HINTS = {
    "'\\t'": "; use spaces, not tabs",
    "mapping values are not allowed": "; put a text with ': ' in it in quotes",
    "cannot start any token": "; put a text that begins so in quotes",
}


def load_yaml(
    path: Path,
    schema: type[ModelT] | TypeAdapter[ModelT],
    what: str,
    *,
    field: str,
    described_in: str,
    may_name_files: Sequence[str] = (),
    check: Callable[[ModelT], Iterator[Problem]] | None = None,
) -> ModelT:
    """Read a YAML file as a model.

    Args:
        what: what the file contains, such as "a constitution".
        field: the setting that gave the path, for the message if the file can't be opened.
        described_in: the document that describes every key.
        may_name_files: top-level keys whose value may be the path of a YAML file to include, relative to this one.
        check: finds problems that the model can't find, such as repeated ids; yields each with its place.

    Raises:
        ConfigError: one sentence with the file, line, column, field and remedy.
    """
    adapter = schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)
    try:
        root = _compose(path)
    except FileNotFoundError:
        raise ConfigError(f"{field}: there is no file {path}; give a YAML file.") from None
    except OSError as error:
        raise ConfigError(f"{field}: {path} can't be read ({error.strerror}); give a YAML file.") from None
    for key in may_name_files:
        _take_in(root, key, path.parent)
    try:
        model = _validated(adapter, root, path)
    except ValidationError as error:
        raise _first_mistake(error, root, adapter, what, described_in) from None
    problems = list(check(model)) if check else []
    if problems:
        loc, problem = problems[0]
        raise _refusal(_node_at(root, loc).start_mark, problem, len(problems) - 1)
    return model


def _validated(adapter: TypeAdapter[ModelT], root: yaml.Node, path: Path) -> ModelT:
    """The model of a tree. A field that is text gets the text of the file, such as 1.10, 007 or no, where YAML would
    read a number, a date, or yes or no."""
    try:
        return adapter.validate_python(_Loader("", path).construct_document(root))
    except ValidationError as error:
        wrong = [_node_at(root, found["loc"]) for found in error.errors() if found["type"] == "string_type"]
        literal = [node for node in wrong if isinstance(node, yaml.ScalarNode) and node.tag not in {_STR, _NULL}]
        for node in literal:
            node.tag = _STR
        if not literal:
            raise
        return adapter.validate_python(_Loader("", path).construct_document(root))


def field_path(loc: Loc) -> str:
    return re.sub(r"\.?\[", "[", ".".join(f"[{step}]" if isinstance(step, int) else step for step in loc))


# --- From text to nodes --------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's loader without anchors, aliases, tags and very deep nesting.

    An alias has two places, and expanding aliases of aliases can fill the memory.
    """

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self.name = str(path)  # every mark of this file has it
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or getattr(event, "tag", None):
            problem = "anchors (&), aliases (*) and tags (!) are not supported; write the value out or put it in quotes"
            raise _refusal(event.start_mark, problem)
        if isinstance(event, yaml.ScalarEvent) and _HALF_A_CHARACTER.search(event.value):
            problem = "a \\u escape gives only half a character; write the character itself"
            raise _refusal(event.start_mark, problem)
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:
            raise _refusal(event.start_mark, "a text has a NUL character (\\0) in it; remove it")
        if self._depth == _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} levels deep; close the brackets or indent less"
            raise _refusal(event.start_mark, problem)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ConstructorError):  # YAML reads 2024-13-45 as a date, and "=" as special
            node.tag = _STR
            return node.value


def _compose(path: Path) -> yaml.Node:
    """The tree of nodes of a file; an empty node for an empty file.

    Raises:
        OSError: the file can't be opened.
        ConfigError: it is not UTF-8, not YAML, or has a key that is not text or is repeated.
    """
    start = yaml.Mark(str(path), 0, 0, 0, None, 0)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8")
        problem = f"byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        raise _refusal(_mark_after(before, path), problem) from None
    try:
        loader = _Loader(text, path)
        try:
            root = loader.get_single_node()
        except (ValueError, OverflowError):  # PyYAML reads "\UFFFFFFFF" with chr()
            raise _refusal(loader.get_mark(), "an escape (\\U) is not a valid character; write the character") from None
    except ReaderError as error:
        problem = f"character U+{int(error.character):04X} is not allowed in YAML; remove it"
        raise _refusal(_mark_after(text[: error.position], path), problem) from None
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error) from None
    root = root or yaml.ScalarNode(_NULL, "", start)
    _check_keys(root)
    return root


def _mark_after(text: str, path: Path) -> yaml.Mark:
    return yaml.Mark(str(path), len(text), text.count("\n"), len(text) - text.rfind("\n") - 1, None, 0)


def _not_yaml(error: yaml.MarkedYAMLError) -> ConfigError:
    problem = ", ".join(filter(None, (error.context, error.problem)))
    hint = next((hint for sign, hint in _HINTS.items() if sign in problem), "")
    return _refusal(error.problem_mark, f"not valid YAML: {problem}{hint}")


def _check_keys(node: yaml.Node) -> None:
    """Refuse repeated keys, which YAML accepts silently, and keys such as ``no:`` and ``5:``, which are not text."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag == _MERGE:
                raise _refusal(key.start_mark, "merge keys (<<) are not supported; write the keys out")
            if key.tag != _STR:
                read_as = _read_as(key) if isinstance(key, yaml.ScalarNode) else _shown(key)
                raise _refusal(key.start_mark, f"a key is read as {read_as}, not as text; put it in quotes")
            if key.value in seen:
                raise _refusal(key.start_mark, f"key {key.value!r} is repeated; keep one")
            seen.add(key.value)
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item)


def _take_in(root: yaml.Node, key: str, folder: Path) -> None:
    """Replace the path of another file by the nodes of that file."""
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    for index, (name, value) in enumerate(entries):
        if name.value == key and isinstance(value, yaml.ScalarNode) and value.tag == _STR:
            path = folder / value.value
            try:
                entries[index] = (name, _compose(path))
            except OSError as error:
                reason = error.strerror
                problem = f"{key} is {_shown(value)}, which can't be read ({reason}); give a path relative to this file"
                raise _refusal(value.start_mark, problem) from None


# --- From pydantic errors to one sentence --------------------------------------------------------------------------


def _first_mistake(
    error: ValidationError, root: yaml.Node, adapter: TypeAdapter[Any], what: str, described_in: str
) -> ConfigError:
    errors = error.errors()
    first, num_others = errors[0], len(errors) - 1
    loc, kind = first["loc"], first["type"]
    node = _node_at(root, loc)
    mark = node.start_mark
    if kind == "extra_forbidden":
        problem = f"unknown key {loc[-1]!r}{did_you_mean(str(loc[-1]), _known_keys(adapter, loc[:-1]))}"
        mark = _key_at(_node_at(root, loc[:-1]), loc[-1]).start_mark
    elif kind == "missing" and (misspelt := _misspelt(errors)):
        problem = f"{field_path(loc)} is missing; rename {misspelt!r} to {loc[-1]!r}"
        num_others -= 1  # the unknown key is the same mistake
    elif kind == "missing":
        problem = f"{field_path(loc)} is missing; add it ({described_in} describes every key)"
    elif not loc and kind.endswith("_type"):
        keys = _known_keys(adapter, ())
        wanted = f"a mapping with {', '.join(keys[:3])}, …" if keys else "a list"
        problem = f"{what} is {wanted}, but the file holds {_shown(node)}; see {described_in}"
    else:
        problem = _wrong_value(first, node)
    return _refusal(mark, problem, num_others)


def _misspelt(errors: Sequence[ErrorDetails]) -> str | None:
    """The unknown key that is spelt nearly like the missing key of the first error, in the same mapping."""
    *place, name = errors[0]["loc"]
    unknown = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    beside = [str(loc[-1]) for loc in unknown if list(loc[:-1]) == place]
    return next(iter(get_close_matches(str(name), beside, n=1)), None)


def _wrong_value(error: ErrorDetails, node: yaml.Node) -> str:
    field, kind, shown = field_path(error["loc"]), error["type"], _shown(node)
    if kind == "value_error":
        said = str(error["ctx"]["error"])
        if isinstance(node, yaml.ScalarNode):
            return f"{field} is {shown}; {said}"
        return f"{field}: {said}" if field else said
    if kind.endswith("too_short") or (kind.endswith("_type") and node.tag == _NULL):
        return f"{field} is empty; write it or remove the entry"
    if kind == "string_type":
        return f"{field} is {shown}, which is not text; write text, in quotes if it has ': ' or brackets"
    if kind in {"list_type", "dict_type", "model_type"}:
        return f"{field} is {shown}, which is not a {'list' if kind == 'list_type' else 'mapping'}; write one"
    return f"{field} is {shown}; {re.sub('^Input', 'it', error['msg'])}"


def _refusal(mark: Any, problem: str, num_others: int = 0) -> ConfigError:
    others = f" ({num_others} more after this one.)" if num_others else ""
    sentence = " ".join(problem.split())  # a key with a line break in it stays one line
    return ConfigError(f"{mark.name}:{mark.line + 1}:{mark.column + 1}: {sentence}.{others}")


def _node_at(root: yaml.Node, loc: Loc) -> yaml.Node:
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


def _shown(node: yaml.Node) -> str:
    """A value as it is in the file; text is quoted and shortened."""
    if not isinstance(node, yaml.ScalarNode):
        return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"
    if node.tag == _NULL:
        return "nothing"
    text = node.value if len(node.value) <= _MAX_SHOWN else f"{node.value[:_MAX_SHOWN]}…"
    return repr(text) if node.tag == _STR else text


def _read_as(node: yaml.Node) -> str:
    return _READ_AS.get(node.tag.rsplit(":", 1)[-1], "a special YAML sign")
