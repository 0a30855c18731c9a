"""Makes prompts from rows: drops and counts empty and repeated ones, and splits the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.core.json_text import NotJsonError
from pipeline.data.files import Row, mended_note, rows_of, source_content
from pipeline.data.sources import ColumnsConfig, DataConfig, PoolConfig
from pipeline.data.splits import split_of
from pipeline.data.transcripts import parse_transcript, up_to_last_request
from pipeline.data.turns import is_dialogue, parse_turns
from pipeline.data.written import Known, read_written
from pipeline.records import POOLS, Message, Pool, Prompt, Split, dialogue_key

_BUILTIN: dict[str, str] = {
    "red_team": "red_team.jsonl",
    "ordinary": "ordinary.jsonl",
    "look_alike": "look_alikes.jsonl",
}
BUILTIN_COLUMNS = ColumnsConfig(kind="kind", id="id", manner="manner", twin_of="twin_of")


@dataclass
class Loaded:
    """Prompts of all pools, and the numbers of dropped and of mended rows (pool → number)."""

    prompts: list[Prompt] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    """Ids of the prompts that a model wrote."""
    num_written_left_out: Counter[str] = field(default_factory=Counter)
    """Reason → number of written prompts that are not used."""
    num_empty: dict[str, int] = field(default_factory=dict)
    num_duplicate: dict[str, int] = field(default_factory=dict)
    num_mended: dict[str, int] = field(default_factory=dict)

    def select(self, pool: str, split: str) -> list[Prompt]:
        return [prompt for prompt in self.prompts if prompt.pool == pool and prompt.split == split]

    def notes(self) -> list[str]:
        """One sentence per pool with dropped rows, and one per pool with mended rows."""
        dropped = [
            f"data.{pool}: dropped {self.num_empty[pool]} empty and {self.num_duplicate[pool]} duplicate rows."
            for pool in self.num_empty
            if self.num_empty[pool] or self.num_duplicate[pool]
        ]
        left_out = ", ".join(f"{number} {reason}" for reason, number in sorted(self.num_written_left_out.items()))
        written = [f"data.written: {len(self.written)} prompts are used; left out: {left_out}."] if left_out else []
        return [*dropped, *written] + [
            note for pool, number in self.num_mended.items() for note in mended_note(f"data.{pool}", number)
        ]


def pool_configs(config: DataConfig) -> dict[Pool, PoolConfig]:
    return {pool: getattr(config, pool) for pool in POOLS}


def pool_content(pool: str, source: PoolConfig) -> dict[str, Any]:
    """What a cache key holds of a pool: content (see ``source_content``), columns and limit."""
    content = source_content(f"data.{pool}", source, _builtin(pool))
    columns = None if source.source == "builtin" else source.columns.key()
    return {"content": content, "columns": columns, "limit": source.limit}


def load_prompts(
    config: DataConfig, written: Mapping[str, Path] | None = None, evaluated: Mapping[str, str] | None = None
) -> Loaded:
    """Read, check, deduplicate and split every pool.

    Args:
        written: field → more files of written prompts, besides ``data.written``.
        evaluated: id → request of an evaluation, which no written prompt may nearly equal.

    Raises:
        ConfigError: the wrong file, line or column, and the remedy.
    """
    loaded = Loaded()
    seen: set[str] = set()
    for pool, source in pool_configs(config).items():
        columns = BUILTIN_COLUMNS if source.source == "builtin" else source.columns
        num_kept = loaded.num_empty[pool] = loaded.num_duplicate[pool] = loaded.num_mended[pool] = 0
        found: dict[str, None] = {}  # the columns of all rows, in order
        for place, row, mended in rows_of(f"data.{pool}", source, _builtin(pool)):
            if source.limit is not None and num_kept >= source.limit:
                break
            found |= dict.fromkeys(row)
            loaded.num_mended[pool] += mended
            messages = _messages(row, columns, place, f"data.{pool}")
            if not messages:
                loaded.num_empty[pool] += 1
                continue
            key = dialogue_key(messages)
            if key in seen:
                loaded.num_duplicate[pool] += 1
                continue
            seen.add(key)
            num_kept += 1
            manner = _label(row, columns.manner)
            loaded.prompts.append(
                Prompt(
                    id=_label(row, columns.id) or f"{pool}-{key[:12]}",
                    pool=pool,
                    kind=_label(row, columns.kind) or "unspecified",
                    manner=manner,
                    twin_of=_label(row, columns.twin_of),
                    split="test" if manner in config.held_out_manners else _split(key, config),
                    messages=messages,
                )
            )
        if source.source != "builtin":
            _refuse_absent(columns, found, f"data.{pool}.columns")
    loaded.prompts = _twins_together(loaded.prompts, config)
    files = ({"data.written": Path(config.written).expanduser()} if config.written else {}) | dict(written or {})
    if files:
        _add_written(loaded, config, files, evaluated or {})
    _refuse_repeated_ids(loaded.prompts)
    _refuse_unknown_manners(config, loaded.prompts)
    for pool in POOLS:
        _refuse_too_few(loaded, pool, config.min_prompts)
    return loaded


def _add_written(loaded: Loaded, config: DataConfig, files: Mapping[str, Path], evaluated: Mapping[str, str]) -> None:
    """Add what models wrote to the training split, without what would spoil an evaluation."""
    known = Known(loaded.prompts, config.held_out_manners, evaluated)
    for field_name, path in files.items():
        for prompt in read_written(field_name, path):
            if reason := known.why_left_out(prompt):
                loaded.num_written_left_out[reason] += 1
                continue
            known.add(prompt)
            loaded.prompts.append(prompt)
            loaded.written.add(prompt.id)


def _label(row: Row, column: str | None) -> str:
    """The text in a column; "" without the column or without text."""
    return str(row[column]) if column and row.get(column) else ""


def _split(key: str, config: DataConfig) -> Split:
    return split_of(key, config.train_fraction, config.validation_fraction)


def _twins_together(prompts: list[Prompt], config: DataConfig) -> list[Prompt]:
    """Move each twin into the split of the harmful request that it belongs to: a model that was trained on one of them
    has seen the words of the other. A twin of a request that is not here goes where that request's id leads."""
    splits = {prompt.id: prompt.split for prompt in prompts}
    held_out = set(config.held_out_manners)
    together = []
    for prompt in prompts:
        other = prompt.twin_of
        if other and prompt.manner not in held_out:
            prompt = prompt.model_copy(update={"split": splits.get(other) or _split(other, config)})
        together.append(prompt)
    return together


def _refuse_unknown_manners(config: DataConfig, prompts: Iterable[Prompt]) -> None:
    known = sorted({prompt.manner for prompt in prompts} - {""})
    for manner in config.held_out_manners:
        if manner not in known:
            raise ConfigError(
                f"data.held_out_manners: no prompt has the manner {manner!r}{did_you_mean(manner, known)}; remove it, "
                "or name the column with manners in data.POOL.columns.manner."
            )


def _refuse_absent(columns: ColumnsConfig, found: Iterable[str], field: str) -> None:
    """Refuse a named column that no row has. ``found``: the columns of all rows."""
    for name in ("kind", "id", "manner", "twin_of"):
        column = getattr(columns, name)
        if column is not None and (known := list(found)) and column not in known:
            raise ConfigError(f"{field}.{name} is {column!r}, but no row has that column{did_you_mean(column, known)}.")


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


def _messages(row: Row, columns: ColumnsConfig, place: str, field: str) -> list[Message]:
    """The prompt of a row as a dialogue that ends with the person's turn; empty if there is no request."""
    kind = next(kind for kind in ("messages", "transcript", "prompt") if getattr(columns, kind) is not None)
    column = getattr(columns, kind)
    if column not in row:
        raise ConfigError(
            f"{place}: there is no column {column!r} (columns.{kind}){_other_column(column, row, field)}."
        )
    value = row[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if kind == "messages":
        try:
            return up_to_last_request(parse_turns(value))
        except ValueError as error:
            raise ConfigError(f"{place}: column {column!r} {_turns_problem(error)}.") from None
    if is_dialogue(value):
        raise ConfigError(
            f"{place}: column {column!r} holds a list of turns, but columns.{kind} is for text; set "
            f"{field}.columns.messages={column}."
        )
    if not isinstance(value, str):
        raise ConfigError(f"{place}: column {column!r} holds a {type(value).__name__}; text is expected.")
    if kind == "prompt":
        return [Message(role="user", content=value.strip())]
    try:
        return up_to_last_request(parse_transcript(value))
    except ValueError as error:
        raise ConfigError(f"{place}: column {column!r} is not a transcript: {error}.") from None


def _other_column(column: str, row: Row, field: str) -> str:
    """What to set instead of a column that a row does not have."""
    dialogues = [name for name, value in row.items() if is_dialogue(value)]
    if dialogues:
        return f"; column {dialogues[0]!r} holds a list of turns: set {field}.columns.messages={dialogues[0]}"
    return did_you_mean(column, row)


def _turns_problem(error: ValueError) -> str:
    """What is wrong with a column of turns, as the end of a sentence that begins with the column."""
    return f"is text but {error}" if isinstance(error, NotJsonError) else str(error)
