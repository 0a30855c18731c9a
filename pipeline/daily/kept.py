"""What ``/save`` of a chat keeps, in files that a constitution or a run can read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.constitution.schema import Contrast, WorkedExample
from pipeline.core.cache import cache_key
from pipeline.core.errors import ConfigError
from pipeline.core.text import words
from pipeline.records import Message

EXAMPLES, CONTRASTS, PROMPTS = "worked_examples.yaml", "contrasts.yaml", "red_team.jsonl"


def keep_example(
    folder: Path, request: str, poor_reply: str, critique: str, revision: str, tags: list[str]
) -> tuple[Path, str]:
    """Append a poor reply and its correction to a file of worked examples. Returns the file, and how to use it."""
    example = WorkedExample(
        id=_id(request), tags=tags, request=request, poor_reply=poor_reply, critique=critique, revision=revision
    )
    path = folder / EXAMPLES
    _append(path, example.model_dump(mode="json"))
    return path, f"in your constitution: worked_examples: {path.name}"


def keep_contrast(folder: Path, request: str, revision: str, twin: str) -> tuple[Path, str]:
    """Append a harmful request, the right reply to it and a harmless twin to a file of contrasts."""
    contrast = Contrast(id=_id(request), request=request, revision=revision, twin=twin)
    path = folder / CONTRASTS
    _append(path, contrast.model_dump(mode="json"))
    return path, f"in your constitution: contrasts: {path.name}"


def keep_prompt(folder: Path, turns: list[Message]) -> tuple[Path, str]:
    """Append a conversation up to its last request to a file of red-team prompts."""
    path = folder / PROMPTS
    row = {"prompt": turns[0]["content"]} if len(turns) == 1 else {"messages": turns}
    _write(path, json.dumps(row, ensure_ascii=False) + "\n")
    return path, f"in a run: data=local data.red_team.path={path.name}"


def _append(path: Path, part: dict[str, Any]) -> None:
    """Append to a YAML list. The text that is there stays as it is, comments too.

    Raises:
        ConfigError: the file is no list, or the request is kept already: a constitution has only one reply to each.
    """
    for other in (path.with_name(EXAMPLES), path.with_name(CONTRASTS)):
        if part["id"] in [row.get("id") for row in _rows(other)]:
            raise ConfigError(f"{other} already has this request (id {part['id']}); nothing is added.")
    _write(path, yaml.safe_dump([part], sort_keys=False, allow_unicode=True, width=100))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else []
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read ({str(error).splitlines()[0]}); mend it, or move it away.") from None
    rows = [] if rows is None else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} is no YAML list of examples, so nothing is added to it; move it away.")
    return rows


def _write(path: Path, text: str) -> None:
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        with path.open("a", encoding="utf-8") as file:
            file.write(text if not before or before.endswith("\n") else f"\n{text}")
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}); give another folder with --keep.") from None


def _id(request: str) -> str:
    """A readable id: the first words, and a hash so that no two requests have the same."""
    slug = "-".join(re.sub(r"[^a-z0-9]", "", word) for word in words(request)[:4]).strip("-")
    return f"{slug or 'saved'}-{cache_key({'request': request})[:4]}"
