"""``cai clean``: what the cache holds, what no run refers to, and its removal."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import Timeout
from pydantic import BaseModel

from pipeline.chain.order import cache_folder, runs_folder
from pipeline.chain.runs import RUN_FILE
from pipeline.core.cache import Manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.locks import lock_of
from pipeline.core.log import warn

ANSWERS = "answers"
LOCKS = ".locks"
PARTIAL = ".partial"
SET_ASIDE = ".damaged-"


class Entry(BaseModel):
    """A folder of the cache."""

    name: str
    stage: str
    size_bytes: int
    used: bool
    """A run refers to it, itself or through a stage that was made from it."""
    removable: bool
    """Nothing refers to it, and it is no folder that is kept all the same."""


class Survey(BaseModel):
    """What the cache holds."""

    folder: str
    num_runs: int
    entries: list[Entry]

    @property
    def removable(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.removable]


def survey(output_dir: str, answers: bool = False) -> Survey:
    """Look at every folder of the cache.

    Args:
        answers: also count kept answers of evaluated models as removable. No run refers to them; they save the next
            evaluation of the same model.

    Raises:
        ConfigError: there is no cache.
        ArtifactError: a run's file can't be read, so what it refers to is not known.
    """
    cache, runs = cache_folder(output_dir), runs_folder(output_dir)
    if not cache.is_dir():
        raise ConfigError(f"--output-dir is {output_dir!r}, where no run has been made: there is no folder {cache}.")
    folders = sorted(path for path in cache.iterdir() if path.is_dir() and path.name != LOCKS)
    known = sorted(path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()) if runs.is_dir() else []
    used = _with_inputs(cache, (name for run in known for name in _referred(run, cache)))
    return Survey(
        folder=str(cache),
        num_runs=len(known),
        entries=[_entry(folder, used, answers) for folder in folders],
    )


def _entry(folder: Path, used: set[str], answers: bool) -> Entry:
    stage = folder.name.removesuffix(PARTIAL).rpartition("-")[0]
    kept = SET_ASIDE in folder.name or (stage == ANSWERS and not answers)
    is_used = folder.name.removesuffix(PARTIAL) in used
    return Entry(
        name=folder.name,
        stage="set aside" if SET_ASIDE in folder.name else stage,
        size_bytes=_size(folder),
        used=is_used,
        removable=not is_used and not kept,
    )


def _referred(run: Path, cache: Path) -> Iterable[str]:
    """Names of the cache's folders that a run links to, or that its record names: made, or being made."""
    for path in run.iterdir():
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if cache.resolve() in target.parents:
                yield target.relative_to(cache.resolve()).parts[0]
    try:
        record = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
        yield from record["stages"].values()
        if record["making"]:
            yield record["making"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError(
            f"{run / RUN_FILE} is damaged, so nobody knows what the run needs; run its command again, or delete the "
            "folder of the run."
        ) from None


def _with_inputs(cache: Path, names: Iterable[str]) -> set[str]:
    """The names, and those of the stages that they were made from."""
    found: set[str] = set()
    open_ends = list(names)
    while open_ends:
        name = open_ends.pop()
        if name in found:
            continue
        found.add(name)
        try:
            manifest = Manifest.read(cache / name)
        except ArtifactError as error:
            warn(str(error))
            continue
        open_ends += manifest.inputs.values() if manifest else []
    return found


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, without those that links point to."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def remove(cache: Path, entries: Sequence[Entry]) -> list[Entry]:
    """Delete folders of the cache. Returns those that were deleted; one that a run is working on is left."""
    return [entry for entry in entries if _remove(cache / entry.name)]


def _remove(folder: Path) -> bool:
    """Delete a folder under its lock. It loses its name first, so that no run finds half of it."""
    final = folder.with_name(folder.name.removesuffix(PARTIAL))
    locks = [lock_of(folder.parent / LOCKS / final.name, False)]
    if folder.name.startswith(f"{ANSWERS}-"):
        locks.append(lock_of(folder / ANSWERS, False))
    if (lease := folder.parent / LOCKS / f"{final.name}.lease").exists():
        locks.append(lock_of(lease.with_suffix(""), True))
    held = []
    try:
        for lock in locks:
            lock.acquire(timeout=0)
            held.append(lock)
        dying = folder.with_name(f".removed-{folder.name}")
        folder.rename(dying)
        shutil.rmtree(dying)
        return True
    except Timeout:
        warn(f"{folder.name} is being made by a run, so it stays.")
        return False
    finally:
        for lock in held:
            lock.release()
