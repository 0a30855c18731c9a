"""The reference of all settings, made from their fields: ``cai config`` and docs/configuration.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.chain.config import Config
from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.settings import Settings, is_runtime, limits_of, registry_of

Row = tuple[str, str, str, str]
Section = tuple[str, str, str, list[Row]]
"""name, type and limits, default, sentence"""


def sections() -> Iterator[Section]:
    """Yield (path, choice, description, settings) of every section. A section with choices has one entry per choice.

    Choices that an earlier section has, too, have one entry without settings, which says where they are.
    """
    top = [row for name, field in Config.model_fields.items() if (row := _row(Config, name, field)) is not None]
    yield "", "", "Settings at the top.", top
    seen: dict[int, str] = {}
    first = ("engine", "preferences", "evaluate")  # engines, labellers and judges are described where a reader looks
    for name in first:
        yield from _section(name, Config.model_fields[name], seen)
    for name, field in Config.model_fields.items():
        if name not in first:
            yield from _section(name, field, seen)


def _section(path: str, field: FieldInfo, seen: dict[int, str]) -> Iterator[Section]:
    registry = registry_of(field)
    if registry is not None and (first := seen.setdefault(id(registry), path)) != path:
        yield path, "", f"The settings of `{first}`.", []
    elif registry is not None:
        for choice in registry:
            yield from _class(path, f"{path}.{registry.tag}={choice}", registry.config_of(choice), seen)
    elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        yield from _class(path, "", field.annotation, seen)


def _class(path: str, chosen: str, kind: type[BaseModel], seen: dict[int, str]) -> Iterator[Section]:
    rows = [row for name, field in kind.model_fields.items() if (row := _row(kind, name, field)) is not None]
    yield path, chosen, " ".join((kind.__doc__ or "").split()), rows
    for name, field in kind.model_fields.items():
        yield from _section(f"{path}.{name}", field, seen)
    if issubclass(kind, Settings) and kind.sections is not None:
        first = seen.setdefault(id(kind.sections), path)
        for name in kind.sections:
            if first == path:
                yield from _class(f"{path}.{name}", "", kind.sections.config_of(name), seen)
            else:
                yield f"{path}.{name}", "", f"The settings of `{first}.{name}`.", []


def _row(kind: type[BaseModel], name: str, field: FieldInfo) -> Row | None:
    if registry_of(field) is not None or (
        isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    ):
        return None
    what = field.description or ""
    if is_runtime(kind, name):
        what += " *Not in the cache key.*"
    return name, _type(field), _default(field), " ".join(what.split())


def _type(field: FieldInfo) -> str:
    limits = limits_of(field)
    return _name(field.annotation) + (f", {limits}" if limits else "")


def _name(annotation: Any) -> str:
    if get_origin(annotation) is dict:
        return "name → value"
    if get_origin(annotation) is list:
        return f"list of {_name(get_args(annotation)[0])}"
    if options := [part for part in get_args(annotation) if part is not type(None)]:
        if all(isinstance(option, str) for option in options):
            return " | ".join(options)
        nullable = type(None) in get_args(annotation)
        return " or ".join(map(_name, options)) + (" or null" if nullable else "")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"section with {' and '.join(annotation.model_fields)}"
    return {int: "whole number", float: "number", str: "text", bool: "true | false"}.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "set in configs/"
    if isinstance(value, list | dict):
        return ", ".join(map(str, value)) or "empty"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def known_groups() -> list[str]:
    return sorted({path.split(".")[0] for path, *_ in sections() if path})


def _of_group(group: str | None) -> Iterator[Section]:
    """The sections of a group and below it, or all.

    Raises:
        ConfigError: there is no such group.
    """
    found = [s for s in sections() if group is None or s[0] == group or s[0].startswith(f"{group}.")]
    if not found:
        raise ConfigError(f"GROUP: there is no group {group!r}{did_you_mean(str(group), known_groups())}.")
    yield from found


def settings_of(group: str | None = None) -> list[dict[str, str]]:
    """Every setting of a group, or all. ``choice`` is the one of several, such as a method, that the setting is for."""
    return [
        {"key": f"{path}.{name}".lstrip("."), "choice": chosen, "type": kind, "default": default, "meaning": text}
        for path, chosen, _, rows in _of_group(group)
        for name, kind, default, text in rows
    ]


def reference(group: str | None = None) -> str:
    """Markdown of all settings, or of one group with its subsections."""
    lines: list[str] = []
    for path, chosen, what, rows in _of_group(group):
        if not rows:
            lines += ["", f"`{path}`: {what[0].lower()}{what[1:]}"]
            continue
        lines += [
            "",
            f"## {chosen or path or 'Top'}",
            "",
            what,
            "",
            "| key | type | default | |",
            "| --- | --- | --- | --- |",
        ]
        prefix = f"{path}." if path else ""
        lines += [
            f"| `{prefix}{name}` | {_cell(kind)} | {_cell(default)} | {_cell(text)} |"
            for name, kind, default, text in rows
        ]
    return "\n".join(lines).strip() + "\n"


def _cell(text: str) -> str:
    return re.sub(r"\|", "\\|", text)


HEADER = """# Every setting

`cai config --markdown` writes this page; a test keeps it current. Set a value with `cai run KEY=VALUE`. The files in
`configs/` change some of these defaults; `cai run --cfg` prints the values of a run.

"""
