"""Runs a server, and ends it with all its children once the run that wanted it is over, however that ended.

    python guardian.py PARENT_PID COMMAND …

The run holds the other end of this process's standard input: it closes it, or the system does when the run is killed.
``serving.py`` starts this file by its path, so that it needs no import of the pipeline.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

import psutil

SECONDS_BETWEEN_LOOKS = 0.2
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
SECONDS_TO_END = 10.0  # then it is killed


def main(parent: int, command: list[str]) -> int:
    """Return the exit code of the server, or 0 if the run was over first."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    _adopt_orphans()
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while server.poll() is None and not _is_over(parent):
            pass
        return server.poll() or 0
    finally:
        _end(server.pid)


def _adopt_orphans() -> None:
    """Become the parent of processes whose parent, the server, ends before them. Only Linux can do this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _is_over(parent: int) -> bool:
    """Wait a moment. A fork of the run may hold the pipe open after it was killed, so the parent counts, too."""
    closed, _, _ = select.select([sys.stdin], [], [], SECONDS_BETWEEN_LOOKS)
    return bool(closed) or os.getppid() != parent


def _end(session: int) -> None:
    """End the server's session and everything below this process."""
    found = _processes(session)
    for process in found:
        _send(process, signal.SIGTERM)
    _, left = psutil.wait_procs(found, timeout=SECONDS_TO_END)
    for process in {*left, *_processes(session)}:
        _send(process, signal.SIGKILL)


def _processes(session: int) -> set[psutil.Process]:
    found = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):  # it has ended meanwhile
            if os.getsid(process.pid) == session:
                found |= {process, *process.children(recursive=True)}
    return found


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.Error):  # it has ended meanwhile
        process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
