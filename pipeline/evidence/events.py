"""The event log of a run, as a hash chain: each line has the SHA-256 of the line before it.

A line that is changed, moved or taken out breaks the chain. Lines that are cut off at the end leave a shorter chain,
which is whole: only something outside the log can show that, such as a bundle that was made before, or a signature.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.cache import drop_unfinished_line
from pipeline.core.errors import ArtifactError
from pipeline.core.locks import locked

EVENTS = "events.jsonl"
NAME_VARIABLE = "CAI_BY"
NO_ENTRY = "0" * 64  # what the first line names as the line before it
What = Literal["run started", "stage", "report", "approved", "overridden"]


class Event(BaseModel):
    """One line of the log. ``by`` is None where nobody gave a name: the login name is never written by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """From 1."""
    time: str
    what: What
    by: str | None
    details: dict[str, Any]
    before: str
    """SHA-256 of the line before, without its line end."""


def person() -> str | None:
    """The name in the environment variable CAI_BY; None if it is not set or empty."""
    return os.environ.get(NAME_VARIABLE, "").strip() or None


def append(folder: Path, what: What, details: Mapping[str, Any], by: str | None) -> Event:
    """Add an entry to the log of a run.

    Raises:
        ArtifactError: the log is damaged. Nothing is added to a chain that does not hold.
    """
    path = folder / EVENTS
    with locked(folder / ".events", several_machines=False):
        drop_unfinished_line(path)
        lines = read_lines(path)
        try:
            before = check_chain(lines, path.name)
        except ArtifactError as error:
            raise ArtifactError(f"{error} To begin a new log, move {path} away.") from None
        event = Event(
            number=len(before) + 1,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            what=what,
            by=by,
            details=dict(details),
            before=hash_line(lines[-1]) if lines else NO_ENTRY,
        )
        text = json.dumps(event.model_dump(), ensure_ascii=False) + "\n"
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    return event


def read_events(folder: Path) -> list[Event]:
    """The entries of a run's log; none if there is no log. Raises ArtifactError if the chain does not hold."""
    path = folder / EVENTS
    return check_chain(read_lines(path), path.name)


def read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def hash_line(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def check_chain(lines: Sequence[bytes], name: str) -> list[Event]:
    """The entries of a log.

    Raises:
        ArtifactError: a line can't be read, or is not the one that the next line names. It gives the line.
    """
    events: list[Event] = []
    before = NO_ENTRY
    for number, line in enumerate(lines, start=1):
        try:
            event = Event.model_validate_json(line)
        except ValidationError:
            raise ArtifactError(f"{name}:{number} is no entry of an event log; it was changed or cut short.") from None
        if event.number != number or event.before != before:
            what = f"entry {event.number}" if event.number != number else "an entry"
            raise ArtifactError(
                f"{name}:{number} has {what} that does not follow the line before it; a line was changed, moved or "
                "taken out."
            )
        events.append(event)
        before = hash_line(line)
    return events
