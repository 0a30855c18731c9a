"""The cache: one folder per stage result, named by its cache key.

A stage writes to ``<stage>-<cache key>.partial``. Its manifest is written last, then the folder is renamed. A folder
without a manifest is therefore unfinished. The cache key hashes what decides the result, and not where it ran.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import ArtifactError, first_line
from pipeline.core.log import Usage
from pipeline.core.text import whole_characters

KEY_FORMAT = 2
MANIFEST = "manifest.json"
FAILED: Literal["failed"] = "failed"  # the ``finish`` of a row that is no answer: it is asked again
WORK = "work"  # folder for what only an unfinished stage needs: record logs, checkpoints


def canonical_json(value: Any) -> str:
    """The JSON text of a value that is hashed. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def cache_key(fields: dict[str, Any]) -> str:
    """SHA-256 of what decides a result. Increase ``KEY_FORMAT`` when this function changes."""
    return hashlib.sha256(f"cai-{KEY_FORMAT}:{canonical_json(fields)}".encode()).hexdigest()


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(paths)}


def hash_folder(folder: Path, parts: Iterable[str] = ()) -> str:
    """Content hash of a folder: the paths and bytes of its files, not times.

    Other sub-folders than ``parts`` don't count, nor do hidden files, notes and logs: a run may write there.
    """
    folders = [folder, *(folder / part for part in parts)]
    files = [path for place in folders if place.is_dir() for path in place.iterdir() if path.is_file()]
    return cache_key(hash_files(folder, (path for path in files if not _is_beside(path))))


def _is_beside(path: Path) -> bool:
    """Whether a file is no part of a model or of a data set, but only lies beside it."""
    return path.name.startswith(".") or path.suffix.lower() in {".md", ".log"}


class Manifest(BaseModel):
    """Description of a finished stage. ``content_hash`` covers only the outputs, not metrics or times."""

    stage: str
    cache_key: str
    fields: dict[str, Any]  # what the cache key hashes
    inputs: dict[str, str]  # stage -> its folder
    outputs: dict[str, str]  # file -> sha256
    content_hash: str
    metrics: dict[str, Any]
    seconds: float
    busy_seconds: float  # generating, scoring and training
    num_calls: int  # to engines
    num_tokens_written: int  # by engines
    usage: dict[str, Usage] = {}  # name of a server's model -> what it used
    peak_memory_gib: float | None = None  # of one process or its GPU; manifests of before have none
    started: str
    environment: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Return the manifest, or None where the stage has not finished.

        Raises:
            ArtifactError: the manifest can't be read, or a file that it lists is missing.
        """
        path = folder / MANIFEST
        try:
            manifest = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValidationError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path} is damaged ({first_line(error)}); delete {folder} and run again.") from error
        if lost := [name for name in manifest.outputs if not (folder / name).exists()]:
            raise ArtifactError(f"{folder / lost[0]} is missing; delete {folder} and run again.")
        return manifest

    def verify(self, folder: Path, suffixes: tuple[str, ...] = ()) -> None:
        """Compare the files with their hashes: only those that end in one of ``suffixes``, or all.

        Raises:
            ArtifactError: a file is missing or was changed.
        """
        for name, digest in self.outputs.items():
            path = folder / name
            if (not suffixes or path.suffix in suffixes) and (not path.is_file() or hash_file(path) != digest):
                raise ArtifactError(
                    f"{path.resolve()} is not as it was written; delete the folder {folder.resolve().name} from the "
                    "cache and run the same command again."
                )


def commit(partial: Path, final: Path, manifest: Manifest) -> None:
    """Write the manifest, then rename the folder. From then on the stage counts as finished."""
    text = manifest.model_dump_json(indent=2)
    with (partial / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(final)


def write_text_atomically(path: Path, text: str) -> None:
    draft = _draft(path)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def link(target: Path, name: Path) -> None:
    """Make ``name`` a relative symlink to ``target``. An older link is replaced atomically.

    A relative link counts from the folder where it really lies, and a folder above it may itself be a link.
    """
    draft = _draft(name)
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(target.resolve(), name.parent.resolve()))
    draft.replace(name)


def _draft(path: Path) -> Path:
    """A path in the same folder that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")


class RecordLog:
    """Append-only rows by id, so that a resumed stage repeats no finished call.

    Each rank appends to its own file and reads the files of all ranks, so a run can resume with another number of
    ranks. An incomplete last line, left by a killed process, is dropped when the log is opened.

    A row whose ``finish`` is ``FAILED`` says why a call had no answer. It is in ``failures`` until an answer is logged.
    """

    def __init__(self, folder: Path, name: str, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, name
        self._own = folder / f"{name}.rank{rank}.jsonl"
        drop_unfinished_line(self._own)
        self.rows: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, dict[str, Any]] = {}
        self.reload()

    def reload(self) -> None:
        """Read the rows that all ranks have written so far. Raises ArtifactError for a damaged line."""
        for path in sorted(self._folder.glob(f"{self._name}.rank*.jsonl")):
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ArtifactError(
                        f"{path}:{number} is damaged ({error}); delete that line and run the same command again."
                    ) from None
                self._keep(row)

    def __contains__(self, row_id: str) -> bool:
        return row_id in self.rows

    def __getitem__(self, row_id: str) -> dict[str, Any]:
        return self.rows[row_id]

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows whose id is new. They survive a killed process, but not a power failure."""
        fresh = [row for row in rows if row["id"] not in self.rows]
        lines = [whole_characters(json.dumps(row, ensure_ascii=False)) for row in fresh]
        with self._own.open("ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
        for line in lines:
            self._keep(json.loads(line))  # as a resumed run reads it

    def _keep(self, row: dict[str, Any]) -> None:
        """Remember a row. The first answer wins over later ones, and over failures."""
        if row.get("finish") != FAILED:
            self.rows.setdefault(row["id"], row)
            self.failures.pop(row["id"], None)
        elif row["id"] not in self.rows:
            self.failures[row["id"]] = row


def drop_unfinished_line(path: Path) -> None:
    """Cut off what a killed process left of a line without an end."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)
