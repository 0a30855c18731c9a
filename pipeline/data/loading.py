"""Makes prompts from rows: drops and counts empty and repeated ones, and splits the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, did_you_mean
from pipeline.data.files import mended_note, source_content
from pipeline.data.first_by_hash import FirstByHash
from pipeline.data.layouts.requests import RequestRow
from pipeline.data.pools import Unused, pool_requests, refuse_absent
from pipeline.data.sources import DataConfig, PoolConfig
from pipeline.data.splits import split_of
from pipeline.data.written import Known, read_written
from pipeline.records import POOLS, Pool, Prompt, Split, dialogue_key

_BUILTIN: dict[str, str] = {
    "red_team": "red_team.jsonl",
    "ordinary": "ordinary.jsonl",
    "look_alike": "look_alikes.jsonl",
}


@dataclass
class Loaded:
    """Prompts of all pools, and for each pool what could not be used."""

    prompts: list[Prompt] = field(default_factory=list)
    written: set[str] = field(default_factory=set)
    """Ids of the prompts that a model wrote."""
    num_written_left_out: Counter[str] = field(default_factory=Counter)
    """Reason → number of written prompts that are not used."""
    unused: dict[Pool, Unused] = field(default_factory=dict)

    def unused_by_pool(self, name: str) -> dict[str, int]:
        """Pool → number of rows, for a field of ``Unused``."""
        return {pool: getattr(unused, name) for pool, unused in self.unused.items()}

    def select(self, pool: str, split: str) -> list[Prompt]:
        return [prompt for prompt in self.prompts if prompt.pool == pool and prompt.split == split]

    def notes(self) -> list[str]:
        """Sentences about the layouts that were detected, and about dropped and mended rows."""
        read = [
            f"data.{pool} is read as {unused.layout}: docs/data.md says what that means."
            for pool, unused in self.unused.items()
            if unused.layout
        ]
        dropped = [note for pool, unused in self.unused.items() for note in unused.notes(f"data.{pool}")]
        left_out = ", ".join(f"{number} {reason}" for reason, number in sorted(self.num_written_left_out.items()))
        written = [f"data.written: {len(self.written)} prompts are used; left out: {left_out}."] if left_out else []
        mended = [
            note for pool, unused in self.unused.items() for note in mended_note(f"data.{pool}", unused.num_mended)
        ]
        return [*read, *dropped, *written, *mended]


def pool_configs(config: DataConfig) -> dict[Pool, PoolConfig]:
    return {pool: getattr(config, pool) for pool in POOLS}


def pool_content(pool: str, source: PoolConfig) -> dict[str, Any]:
    """What a cache key holds of a pool: content (see ``source_content``), columns, and how much of it is read."""
    content = source_content(f"data.{pool}", source, _builtin(pool))
    columns = None if source.source == "builtin" else source.columns.key()
    sample = {} if source.num_prompts is None else {"num_prompts": source.num_prompts}
    return {"content": content, "columns": columns, "limit": source.limit, **sample}


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
        unused = loaded.unused[pool] = Unused()
        prompts = pool_prompts(pool, source, config, seen, unused)
        if not prompts:
            unused.refuse_nothing(f"data.{pool}", source.path)
        seen.update(prompts)
        loaded.prompts.extend(prompts.values())
    loaded.prompts = _twins_together(loaded.prompts, config)
    files = ({"data.written": Path(config.written).expanduser()} if config.written else {}) | dict(written or {})
    if files:
        _add_written(loaded, config, files, evaluated or {})
    _refuse_repeated_ids(loaded.prompts)
    _refuse_unknown_manners(config, loaded.prompts)
    for pool in POOLS:
        _refuse_too_few(loaded, pool, config.min_prompts)
    return loaded


def pool_prompts(
    pool: Pool, source: PoolConfig, config: DataConfig, seen: set[str], unused: Unused
) -> dict[str, Prompt]:
    """Read one pool. Returns key → prompt.

    Args:
        seen: the keys of other pools.
        unused: counts what is not used.
    """
    kept: FirstByHash[Prompt] = FirstByHash(source.num_prompts)
    num_read = 0
    for request in pool_requests(pool, source, _builtin(pool), unused):
        key = dialogue_key(request.messages)
        if key in seen or key in kept:
            unused.num_duplicate += 1
            continue
        if kept.wants(key):
            kept.add(key, _prompt(request, pool, key, config))
        num_read += 1
        if num_read == source.limit:
            break
    refuse_absent(f"data.{pool}.columns", source, unused)
    return kept.items()


def _prompt(request: RequestRow, pool: Pool, key: str, config: DataConfig) -> Prompt:
    return Prompt(
        id=request.id or f"{pool}-{key[:12]}",
        pool=pool,
        kind=request.kind,
        manner=request.manner,
        twin_of=request.twin_of,
        split="test" if request.manner in config.held_out_manners else _split(key, config),
        messages=request.messages,
    )


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
