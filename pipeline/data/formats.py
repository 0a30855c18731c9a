"""One function for each kind of file: its rows, each with its place.

Parquet and JSONL are read as a stream: no more than a batch of rows, or a line, is in memory. CSV and JSON are not.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, first_line
from pipeline.core.json_text import NotJsonError, parse_json

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]
Damaged = Callable[[str], None]
"""Called with a message for each line that is not a row. Without such a function, the line is an error."""

STREAMED = (".parquet", ".jsonl", ".jsonl.gz")
"""What files of a folder of shards may end in."""
BATCH_ROWS = 1000  # rows of Parquet that are Python objects at a time
_BUFFER_BYTES = 1 << 20  # of each column; without it, or with pyarrow's pre_buffer, a whole row group is read at once
_MAX_FIELD = 1 << 30  # characters of a CSV field; Python's own limit of 131,072 is less than a long dialogue


def file_rows(field: str, path: Path, damaged: Damaged | None) -> Rows:
    """The rows of a file, which is read by its ending.

    Args:
        field: the section that names the file, for messages.

    Raises:
        ConfigError: another ending, or the file can't be read.
    """
    name = path.name.lower()
    if name.endswith(".json"):
        return json_rows(path)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return jsonl_rows(path, damaged)
    if name.endswith((".csv", ".tsv")):
        return csv_rows(path, damaged)
    if name.endswith(".parquet"):
        return parquet_rows(field, path)
    raise ConfigError(
        f"{field}.path: {path} is not a .jsonl, .jsonl.gz, .json, .csv, .tsv or .parquet file, a folder of .parquet or "
        ".jsonl files, or a datasets folder."
    )


def json_rows(path: Path) -> Rows:
    """A list of objects."""
    try:
        rows = parse_json(_read_text(path))
    except NotJsonError as error:
        place = f":{error.line}:{error.column}" if error.line else ""
        raise ConfigError(f"{path}{place}: {error}; fix the file.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: a .json file must hold a list of objects; for one object per line use .jsonl.")
    yield from ((f"{path}, entry {i + 1}", row) for i, row in enumerate(rows))


def jsonl_rows(path: Path, damaged: Damaged | None) -> Rows:
    """One object on each line, also in a file that gzip has packed."""
    for number, line in enumerate(_lines(path), start=1):
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


def csv_rows(path: Path, damaged: Damaged | None) -> Rows:
    """A table with a header."""
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


def parquet_rows(field: str, path: Path) -> Rows:
    """A Parquet file. Its row groups may be of any size: a column of a group is read page by page."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            _refuse_repeated(file.schema_arrow.names, str(path))
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{field}.path: {path} is not a readable Parquet file ({first_line(error)}).") from None


def _tell(damaged: Damaged | None, problem: str) -> None:
    if damaged is None:
        raise ConfigError(problem)
    damaged(problem)


def _refuse_repeated(columns: list[str], place: str) -> None:
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise ConfigError(f"{place}: column {twice!r} is there twice; rename or remove one.")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text, which only ``\\n`` ends, one at a time."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}:{number}: not UTF-8 text (byte {error.start} of the line); convert the file."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(f"{path}: can't be read ({why}).") from None


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); convert the file.") from None
