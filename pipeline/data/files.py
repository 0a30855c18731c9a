"""Reads rows from JSONL, JSON, CSV, TSV, Parquet, a ``datasets`` folder or the hub, each with its place."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.cache import hash_file, hash_folder
from pipeline.core.errors import ConfigError, did_you_mean, first_line
from pipeline.core.json_text import NotJsonError, parse_json
from pipeline.core.text import whole_characters
from pipeline.data.sources import SourceConfig

Row = dict[str, Any]
_MAX_FIELD = 1 << 30  # characters of a CSV field; Python's own limit of 131,072 is less than a long dialogue


class Line(NamedTuple):
    """A row, where it is from, and whether half characters in it were replaced."""

    place: str
    row: Row
    mended: bool


Damaged = Callable[[str], None]
"""Called with a message for each line that is not a row. Without such a function, the line is an error."""


def source_content(field: str, source: SourceConfig, builtin: Path) -> Any:
    """The content of a source for cache keys: a hash for files; id and revision for the hub."""
    if source.source == "none":
        return None
    if source.source == "hub":
        return [source.path, source.hub_name, source.hub_dir, source.hub_split, source.revision]
    path = _file_of(field, source, builtin)
    if path.is_dir():  # a DatasetDict has a sub-folder for each split
        return hash_folder(path, sorted(state.parent.name for state in path.glob("*/state.json")))
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


def _raw_rows(field: str, source: SourceConfig, builtin: Path, damaged: Damaged | None) -> Iterator[tuple[str, Row]]:
    if source.source == "hub":
        yield from _hub_rows(field, source)
        return
    path = _file_of(field, source, builtin)
    suffix = path.suffix.lower()
    if path.is_dir():
        yield from _dataset_rows(field, path, source.hub_split)
    elif suffix == ".json":
        yield from _json_rows(path)
    elif suffix == ".jsonl":
        yield from _jsonl_rows(path, damaged)
    elif suffix in {".csv", ".tsv"}:
        yield from _csv_rows(path, damaged)
    elif suffix == ".parquet":
        yield from _parquet_rows(field, path)
    else:
        raise ConfigError(
            f"{field}.path: {path} is not a .jsonl, .json, .csv, .tsv or .parquet file or a datasets folder."
        )


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = parse_json(_read_text(path))
    except NotJsonError as error:
        place = f":{error.line}:{error.column}" if error.line else ""
        raise ConfigError(f"{path}{place}: {error}; fix the file.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: a .json file must hold a list of objects; for one object per line use .jsonl.")
    yield from ((f"{path}, entry {i + 1}", row) for i, row in enumerate(rows))


def _jsonl_rows(path: Path, damaged: Damaged | None) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except NotJsonError as error:
            column = f":{error.column}" if error.column else ""
            _tell(damaged, f"{path}:{number}{column}: {error}; fix the line.")
            continue
        if not isinstance(row, dict):
            _tell(damaged, f"{path}:{number}: the line is a JSON {type(row).__name__}, not an object; fix the line.")
            continue
        yield f"{path}:{number}", row


def _tell(damaged: Damaged | None, problem: str) -> None:
    if damaged is None:
        raise ConfigError(problem)
    damaged(problem)


def _csv_rows(path: Path, damaged: Damaged | None) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(_MAX_FIELD)
    text = io.StringIO(_read_text(path), newline="")
    lines = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    header: list[str] | None = None
    try:
        for line in lines:
            place = f"{path}:{lines.line_num}"
            if not line:
                continue
            if header is None:
                header = [name.strip() for name in line]
                _refuse_repeated(header, place)
            elif len(line) != len(header):
                _tell(damaged, f"{place}: the row and the header have different numbers of fields; quote commas.")
            else:
                yield place, dict(zip(header, line, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path}:{lines.line_num}: not valid CSV: {error}.") from None


def _refuse_repeated(columns: list[str], place: str) -> None:
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise ConfigError(f"{place}: column {twice!r} is there twice; rename or remove one.")


def _parquet_rows(field: str, path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        _refuse_repeated(parquet.read_schema(path).names, str(path))
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{field}.path: {path} is not a readable Parquet file ({first_line(error)}).") from None
    yield from ((f"{path}, row {i + 1}", row) for i, row in enumerate(rows))


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); convert the file.") from None


def _dataset_rows(field: str, path: Path, split: str) -> Iterator[tuple[str, Row]]:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"{field}.path: {path} is not a folder written by save_to_disk ({error}).") from None
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise ConfigError(f"{field}.hub_split: {path} has no split {split!r}{did_you_mean(split, dataset)}.")
        dataset = dataset[split]
    yield from ((f"{path}, row {i + 1}", row) for i, row in enumerate(dataset))


def _hub_rows(field: str, source: SourceConfig) -> Iterator[tuple[str, Row]]:
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
