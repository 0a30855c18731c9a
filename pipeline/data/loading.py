"""Makes prompts from rows: drops and counts empty and repeated ones, and splits the rest."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.data.files import rows_of, source_content
from pipeline.data.sources import ColumnsConfig, DataConfig, PoolConfig
from pipeline.data.splits import split_of
from pipeline.data.transcripts import parse_transcript, up_to_last_request
from pipeline.records import POOLS, Message, Pool, Prompt, dialogue_key

_BUILTIN: dict[str, str] = {
    "red_team": "red_team.jsonl",
    "ordinary": "ordinary.jsonl",
    "look_alike": "look_alikes.jsonl",
}
_ROLES = {"system", "user", "assistant"}


@dataclass
class Loaded:
    """Prompts of all pools, and the numbers of dropped rows (pool → number)."""

    prompts: list[Prompt] = field(default_factory=list)
    num_empty: dict[str, int] = field(default_factory=dict)
    num_duplicate: dict[str, int] = field(default_factory=dict)

    def select(self, pool: str, split: str) -> list[Prompt]:
        return [prompt for prompt in self.prompts if prompt.pool == pool and prompt.split == split]

    def notes(self) -> list[str]:
        """One sentence per pool with dropped rows."""
        return [
            f"data.{pool}: dropped {self.num_empty[pool]} empty and {self.num_duplicate[pool]} duplicate rows."
            for pool in self.num_empty
            if self.num_empty[pool] or self.num_duplicate[pool]
        ]


def pool_configs(config: DataConfig) -> dict[Pool, PoolConfig]:
    return {pool: getattr(config, pool) for pool in POOLS}


def pool_content(pool: str, source: PoolConfig) -> dict[str, Any]:
    """What a cache key holds of a pool: content (see ``source_content``), columns and limit."""
    content = source_content(f"data.{pool}", source, _builtin(pool))
    columns = None if source.source == "builtin" else source.columns.key()
    return {"content": content, "columns": columns, "limit": source.limit}


def load_prompts(config: DataConfig) -> Loaded:
    """Read, check, deduplicate and split every pool.

    Raises:
        ConfigError: the wrong file, line or column, and the remedy.
    """
    loaded = Loaded()
    seen: set[str] = set()
    for pool, source in pool_configs(config).items():
        columns = ColumnsConfig(kind="kind", id="id") if source.source == "builtin" else source.columns
        num_kept = loaded.num_empty[pool] = loaded.num_duplicate[pool] = 0
        for place, row in rows_of(f"data.{pool}", source, _builtin(pool)):
            if source.limit is not None and num_kept >= source.limit:
                break
            messages = _messages(row, columns, place)
            _refuse_surrogates(messages, place)
            if not messages:
                loaded.num_empty[pool] += 1
                continue
            key = dialogue_key(messages)
            if key in seen:
                loaded.num_duplicate[pool] += 1
                continue
            seen.add(key)
            num_kept += 1
            loaded.prompts.append(
                Prompt(
                    id=str(row[columns.id]) if columns.id and row.get(columns.id) else f"{pool}-{key[:12]}",
                    pool=pool,
                    kind=str(row[columns.kind]) if columns.kind and row.get(columns.kind) else "unspecified",
                    split=split_of(key, config.train_fraction, config.validation_fraction),
                    messages=messages,
                )
            )
        _refuse_too_few(loaded, pool, config.min_prompts)
    _refuse_repeated_ids(loaded.prompts)
    return loaded


def _refuse_too_few(loaded: Loaded, pool: Pool, min_prompts: int) -> None:
    for split in ("train", "test"):
        number = len(loaded.select(pool, split))
        if number < min_prompts:
            raise ConfigError(
                f"data.{pool} has {number} prompts in its {split} split; at least {min_prompts} are needed "
                "(data.min_prompts), so add prompts or change data.train_fraction."
            )


def _refuse_repeated_ids(prompts: list[Prompt]) -> None:
    seen: dict[str, Prompt] = {}
    for prompt in prompts:
        if (other := seen.setdefault(prompt.id, prompt)) is not prompt:
            raise ConfigError(
                f"data: id {prompt.id!r} is used for {other.request[:40]!r} and for {prompt.request[:40]!r}; "
                "make ids unique across pools or set columns.id=null."
            )


def _builtin(pool: str) -> Path:
    return Path(__file__).parent / _BUILTIN[pool]


def _messages(row: dict[str, Any], columns: ColumnsConfig, place: str) -> list[Message]:
    """The prompt of a row as a dialogue that ends with the person's turn; empty if there is no request."""
    for kind in ("messages", "transcript", "prompt"):
        column = getattr(columns, kind)
        if column is None:
            continue
        if column not in row:
            raise ConfigError(f"{place}: there is no column {column!r} (columns.{kind}){did_you_mean(column, row)}.")
        value = row[column]
        if kind == "messages":
            return up_to_last_request(_checked_turns(value, place, column))
        if value is None:
            return []
        if not isinstance(value, str):
            raise ConfigError(f"{place}: column {column!r} holds a {type(value).__name__}; text is expected.")
        if kind == "transcript":
            try:
                return up_to_last_request(parse_transcript(value)) if value.strip() else []
            except ValueError as error:
                raise ConfigError(f"{place}: column {column!r} is not a transcript: {error}.") from None
        return [Message(role="user", content=value.strip())] if value.strip() else []
    raise AssertionError("PoolConfig refuses a source without a column")


def _refuse_surrogates(messages: list[Message], place: str) -> None:
    """Refuse half a character ("\\ud800"): it is valid JSON, but it can't be written as UTF-8."""
    for turn in messages:
        if not turn["content"].isascii() and turn["content"].encode("utf-8", "ignore").decode() != turn["content"]:
            raise ConfigError(f"{place}: the text holds half a character (a lone surrogate); fix the line.")


def _checked_turns(value: Any, place: str, column: str) -> list[Message]:
    try:
        turns = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}: column {column!r} is text but not valid JSON: {error.msg}.") from None
    if not isinstance(turns, list):
        raise ConfigError(f"{place}: column {column!r} is not a list of {{role, content}} turns.")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES or not isinstance(turn.get("content"), str):
            raise ConfigError(f"{place}: column {column!r} has a turn that is not {{role, content}}: {str(turn)[:60]}.")
    return [Message(role=t["role"], content=t["content"].strip()) for t in turns if t["content"].strip()]
