"""Prompts that a model wrote and a person may have edited (``written.jsonl``): the file, and which of them are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.core.settings import not_one_of
from pipeline.data.files import rows_of, source_content, text_of
from pipeline.data.near_duplicates import NearIndex
from pipeline.data.sources import SourceConfig
from pipeline.records import POOLS, Message, Prompt, dialogue_key


def written_content(path: str) -> Any:
    """The content of the file, for cache keys. Raises ConfigError if there is none."""
    return source_content("data.written", _source("data.written", Path(path).expanduser()), Path())


def read_written(field: str, path: Path) -> Iterator[Prompt]:
    """The prompt of each row; all are of the training split.

    A row needs ``pool`` and ``prompt``; it may have ``id``, ``kind``, ``manner`` and ``twin_of``, and any other column.

    Args:
        field: the setting that names the file, for messages.

    Raises:
        ConfigError: there is no such file, or a row has no such pool or no text.
    """
    for place, row, _ in rows_of(field, _source(field, path), Path()):
        if row.get("pool") not in POOLS:
            raise ConfigError(f"{place}: {not_one_of('pool', row.get('pool'), POOLS)}; correct or remove the row.")
        try:
            messages = [Message(role="user", content=text_of(row, "prompt"))]
        except (KeyError, ValueError):
            raise ConfigError(f"{place}: the column 'prompt' has no text; write one or remove the row.") from None
        yield Prompt(
            id=str(row.get("id") or f"written-{dialogue_key(messages)[:12]}"),
            pool=row["pool"],
            kind=str(row.get("kind") or "unspecified"),
            manner=str(row.get("manner") or ""),
            twin_of=str(row.get("twin_of") or ""),
            split="train",
            messages=messages,
        )


def _source(field: str, path: Path) -> SourceConfig:
    if not path.is_file():
        raise ConfigError(f"{field}: there is no file {path}; give an existing one, or null.")
    return SourceConfig(source="path", path=str(path))


class Known:
    """What a written prompt may not repeat.

    Args:
        prompts: all others, each with its final split.
        held_out_manners: manners that nothing is trained on.
        evaluated: id → request of an evaluation.
    """

    def __init__(
        self, prompts: Sequence[Prompt], held_out_manners: Sequence[str], evaluated: Mapping[str, str]
    ) -> None:
        held_out = {prompt.id: prompt.request for prompt in prompts if prompt.split != "train"}
        self._held_out_ids, self._manners = frozenset(held_out), frozenset(held_out_manners)
        self._keys = {prompt.key for prompt in prompts}
        self._evaluated = NearIndex(held_out | {f"evaluated {name}": text for name, text in evaluated.items()})

    def add(self, prompt: Prompt) -> None:
        self._keys.add(prompt.key)

    def why_left_out(self, prompt: Prompt) -> str:
        """Why a written prompt is not used, in words that follow a number; "" if it is."""
        if prompt.manner in self._manners:
            return "in a held-out manner"
        if prompt.key in self._keys:
            return "equal to another prompt"
        if prompt.twin_of in self._held_out_ids:
            return "twins of a held-out prompt"
        return "near to an evaluated prompt" if self._evaluated.closest(prompt.request) else ""
