"""Reads rows from files, folders of shards, a ``datasets`` folder or the hub, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.cache import cache_key, hash_file, hash_files, hash_folder
from pipeline.core.errors import ConfigError, did_you_mean, first_line
from pipeline.core.text import whole_characters
from pipeline.data.formats import STREAMED, Damaged, Row, Rows, file_rows
from pipeline.data.sources import SourceConfig

# Names of shards as the hub writes them, such as test_prefs-00000-of-00002.parquet; and of the only file of a split.
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}(-[0-9a-f]{16})?")
_SPLITS = ("train", "validation", "valid", "dev", "test")
_MARKS = ("state.json", "dataset_dict.json")  # of a folder that save_to_disk has written


class Line(NamedTuple):
    """A row, where it is from, and whether half characters in it were replaced."""

    place: str
    row: Row
    mended: bool


def source_content(field: str, source: SourceConfig, builtin: Path) -> Any:
    """The content of a source for cache keys: a hash for files; id and revision for the hub."""
    if source.source == "none":
        return None
    if source.source == "hub":
        return [source.path, source.hub_name, source.hub_dir, source.hub_split, source.revision]
    path = _file_of(field, source, builtin)
    if shards := _shards(field, path, source.hub_split):
        return cache_key(hash_files(path, shards))
    if path.is_dir():  # a DatasetDict has a sub-folder for each split, of which one is read
        splits = sorted(state.parent.name for state in path.glob("*/state.json"))
        content = hash_folder(path, splits)
        return [content, source.hub_split] if splits else content
    return hash_file(path)


def _file_of(field: str, source: SourceConfig, builtin: Path) -> Path:
    if source.source == "builtin":
        return builtin
    path = Path(str(source.path)).expanduser()
    if not path.exists():
        raise ConfigError(f"{field}.path: there is no file or folder {path}; give an existing one.")
    return path


def rows_of(field: str, source: SourceConfig, builtin: Path, damaged: Damaged | None = None) -> Iterator[Line]:
    """The rows of any source, in clean text. A line that is not a row goes to ``damaged``, or raises ConfigError."""
    for place, row in _raw_rows(field, source, builtin, damaged):
        clean = _clean(row)
        yield Line(place, clean, mended=clean != row)


def mended_note(field: str, number: int) -> list[str]:
    """One sentence if rows had half characters."""
    return [f"{field}: {number} rows held half characters or NUL; replaced by U+FFFD."] if number else []


def text_of(row: Row, column: str) -> str:
    """The text in a column of a row. Raises KeyError without the column, ValueError without text."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r} is empty or not text")
    return value.strip()


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {_clean(name): _clean(part) for name, part in value.items()}
    return [_clean(part) for part in value] if isinstance(value, list) else value


def _raw_rows(field: str, source: SourceConfig, builtin: Path, damaged: Damaged | None) -> Rows:
    if source.source == "hub":
        yield from _hub_rows(field, source)
        return
    path = _file_of(field, source, builtin)
    if shards := _shards(field, path, source.hub_split):
        for shard in shards:
            yield from file_rows(field, shard, damaged)
    elif path.is_dir():
        yield from _dataset_rows(field, path, source.hub_split)
    else:
        yield from file_rows(field, path, damaged)


def _shards(field: str, path: Path, split: str) -> list[Path]:
    """The files of a folder that are read one after another, by name; none for a file or a ``datasets`` folder.

    Where the names say which split a file is of, only those of ``split`` are read.
    """
    if not path.is_dir() or any((path / mark).exists() for mark in _MARKS):
        return []
    found = [file for file in path.iterdir() if file.name.lower().endswith(STREAMED) and not file.name.startswith(".")]
    files = {file: _split_of(file) for file in sorted(found)}
    named = sorted(set(files.values()) - {""})
    if not named:
        _refuse_several_splits(field, path, files)
        _refuse_tables(field, path)
        return list(files)
    if split not in named:
        raise ConfigError(
            f"{field}.hub_split: {path} has no files of the split {split!r}{did_you_mean(split, named)}; the names of "
            f"its files say {', '.join(named)}."
        )
    if unnamed := [file.name for file, of in files.items() if not of]:
        raise ConfigError(
            f"{field}.path: the name of {unnamed[0]} in {path} does not say its split, but other names do "
            f"({', '.join(named)}); give a folder with one set, or one file."
        )
    return [file for file, of in files.items() if of == split]


def _refuse_several_splits(field: str, path: Path, files: Iterable[Path]) -> None:
    """Refuse shards whose names hold the words of different splits, such as train_prefs and test_prefs."""
    said = {word for file in files for word in re.split(r"[-_.]", file.name.lower()) if word in _SPLITS}
    if len(said) > 1:
        raise ConfigError(
            f"{field}.path: the names in {path} seem to say several splits ({', '.join(sorted(said))}); give one file, "
            "or a folder with one split."
        )


def _refuse_tables(field: str, path: Path) -> None:
    """Refuse tables beside shards, because they would not be read."""
    if unread := [file.name for file in sorted(path.iterdir()) if file.suffix.lower() in (".csv", ".tsv")]:
        raise ConfigError(
            f"{field}.path: {path} holds {unread[0]} beside other files, and only {', '.join(STREAMED)} are read as "
            "shards; give one file, or a folder of one kind."
        )


def _split_of(file: Path) -> str:
    """The split in the name of a file; "" where it says none."""
    stem = file.name.split(".")[0]
    if found := _SHARD.fullmatch(stem):
        return found["split"]
    return stem if stem in _SPLITS else ""


def _dataset_rows(field: str, path: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(
            f"{field}.path: {path} holds no {', '.join(STREAMED)} files and is not a folder written by save_to_disk "
            f"({first_line(error)})."
        ) from None
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ConfigError(f"{field}.hub_split: {path} has no split {split!r}{did_you_mean(split, dataset)}.")
        dataset = dataset[split]
    yield from ((f"{path}, row {i + 1}", row) for i, row in enumerate(dataset))


def _hub_rows(field: str, source: SourceConfig) -> Rows:
    from datasets import load_dataset

    try:
        dataset = load_dataset(
            source.path, name=source.hub_name, data_dir=source.hub_dir, split=source.hub_split, revision=source.revision
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{field}.path: data set {source.path!r} could not be loaded ({first_line(error)}); check the id, go "
            f"online, or download it and use {field}.source=path."
        ) from None
    yield from ((f"{source.path}, row {i + 1}", row) for i, row in enumerate(dataset))
