"""Reads and validates YAML files. A mistake becomes one sentence with the file, line and column.

Each node that PyYAML composes knows its file and position. So one file can include another one (a constitution
includes its contrasts), and a mistake in the included file still gets the right place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from pipeline.core.errors import ConfigError
from pipeline.core.yaml_mistakes import (
    NULL,
    STR,
    Loc,
    first_mistake,
    meaning_of,
    node_at,
    not_yaml,
    refusal,
    shown_value,
)

Problem = tuple[Loc, str]  # a place, and what is wrong there with the remedy, without a full stop
ModelT = TypeVar("ModelT")

_MAX_DEPTH = 32  # real files are far less deep; without this limit, Python raises a RecursionError
_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")
_MERGE = "tag:yaml.org,2002:merge"


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
        raise first_mistake(error, root, adapter, what, described_in) from None
    problems = list(check(model)) if check else []
    if problems:
        loc, problem = problems[0]
        raise refusal(node_at(root, loc).start_mark, problem, len(problems) - 1)
    return model


def _validated(adapter: TypeAdapter[ModelT], root: yaml.Node, path: Path) -> ModelT:
    """The model of a tree. A field that is text gets the text of the file, such as 1.10, 007 or no, where YAML would
    read a number, a date, or yes or no."""
    try:
        return adapter.validate_python(_Loader("", path).construct_document(root))
    except ValidationError as error:
        wrong = [node_at(root, found["loc"]) for found in error.errors() if found["type"] == "string_type"]
        literal = [node for node in wrong if isinstance(node, yaml.ScalarNode) and node.tag not in {STR, NULL}]
        for node in literal:
            node.tag = STR
        if not literal:
            raise
        return adapter.validate_python(_Loader("", path).construct_document(root))


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
            raise refusal(event.start_mark, problem)
        if isinstance(event, yaml.ScalarEvent) and _HALF_A_CHARACTER.search(event.value):
            problem = "a \\u escape gives only half a character; write the character itself"
            raise refusal(event.start_mark, problem)
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:
            raise refusal(event.start_mark, "a text has a NUL character (\\0) in it; remove it")
        if self._depth == _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} levels deep; close the brackets or indent less"
            raise refusal(event.start_mark, problem)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ConstructorError):  # YAML reads 2024-13-45 as a date, and "=" as special
            node.tag = STR
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
        raise refusal(_mark_after(before, path), problem) from None
    try:
        loader = _Loader(text, path)
        try:
            root = loader.get_single_node()
        except (ValueError, OverflowError):  # PyYAML reads "\UFFFFFFFF" with chr()
            raise refusal(loader.get_mark(), "an escape (\\U) is not a valid character; write the character") from None
    except ReaderError as error:
        problem = f"character U+{int(error.character):04X} is not allowed in YAML; remove it"
        raise refusal(_mark_after(text[: error.position], path), problem) from None
    except yaml.MarkedYAMLError as error:
        raise not_yaml(error) from None
    root = root or yaml.ScalarNode(NULL, "", start)
    _check_keys(root)
    return root


def _mark_after(text: str, path: Path) -> yaml.Mark:
    return yaml.Mark(str(path), len(text), text.count("\n"), len(text) - text.rfind("\n") - 1, None, 0)


def _check_keys(node: yaml.Node) -> None:
    """Refuse repeated keys, which YAML accepts silently, and keys such as ``no:`` and ``5:``, which are not text."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.tag == _MERGE:
                raise refusal(key.start_mark, "merge keys (<<) are not supported; write the keys out")
            if key.tag != STR:
                read_as = meaning_of(key) if isinstance(key, yaml.ScalarNode) else shown_value(key)
                raise refusal(key.start_mark, f"a key is read as {read_as}, not as text; put it in quotes")
            if key.value in seen:
                raise refusal(key.start_mark, f"key {key.value!r} is repeated; keep one")
            seen.add(key.value)
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item)


def _take_in(root: yaml.Node, key: str, folder: Path) -> None:
    """Replace the path of another file by the nodes of that file."""
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    for index, (name, value) in enumerate(entries):
        if name.value == key and isinstance(value, yaml.ScalarNode) and value.tag == STR:
            path = folder / value.value
            try:
                entries[index] = (name, _compose(path))
            except OSError as error:
                why = f"which can't be read ({error.strerror}); give a path relative to this file"
                raise refusal(value.start_mark, f"{key} is {shown_value(value)}, {why}") from None
