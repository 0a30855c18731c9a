"""Locks between runs that share a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from pipeline.core.log import say, warn

if TYPE_CHECKING:
    from filelock import LeaseCompromise

LEASE_SECONDS = 60.0  # a machine that has not renewed its lease for so long counts as dead


@contextmanager
def locked(path: Path, several_machines: bool) -> Iterator[None]:
    """Hold the lock of a folder; wait for it if another run has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_of(path, several_machines)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{path.name}: another run is making it; waiting …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_of(path: Path, several_machines: bool) -> BaseFileLock:
    """The lock of a folder.

    On network file systems, flock may lock nothing. There, with several machines, the lock is a file that its owner
    renews. The two kinds don't see each other, so a folder is for one of them at a time.
    """
    if not several_machines:
        return FileLock(f"{path}.lock")
    return SoftFileLease(f"{path}.lease", lease_duration=LEASE_SECONDS, on_compromise=_stop)


def _stop(lost: LeaseCompromise) -> None:
    """End this process, and with it its ranks: another run may write to the folder from now on."""
    warn(f"{lost.lock_file} could not be renewed ({lost.reason}), so this run stops; run the same command again.")
    os._exit(1)
