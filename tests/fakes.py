"""Engines that can be read at a glance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path

import psutil

from pipeline.core.cache import RecordLog
from pipeline.core.log import Meter
from pipeline.engines.base import Answer, AskT, Completion, Query, Request


class JoinedServer(ThreadingHTTPServer):
    """Closing it waits for its requests. Otherwise the last ones of a test would be counted in the next test."""

    daemon_threads = False


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that has ended, but that its parent has not waited for, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class FakeLogbook:
    """Keeps logs in a folder, and counts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.meter = folder, Meter()

    def log(self, name: str) -> RecordLog:
        return RecordLog(self.folder, name)


class FakeEngine:
    """Replies and answers by two given functions, in batches of two; remembers what it was asked."""

    name = "fake"

    def __init__(
        self,
        reply: Callable[[Request], str] = lambda request: f"Reply to {request.id}.",
        answer: Callable[[Query], list[float]] = lambda query: [-1.0, -1.0],
    ) -> None:
        self._reply, self._answer = reply, answer
        self.asked: list[str] = []

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]:
        return [list(asks[start : start + 2]) for start in range(0, len(asks), 2)]

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        self.asked += [request.id for request in batch]
        return [Completion(id=r.id, text=self._reply(r), num_tokens=3, finish="stop") for r in batch]

    def score(self, batch: Sequence[Query]) -> list[Answer]:
        self.asked += [query.id for query in batch]
        return [Answer(id=query.id, logprobs=self._answer(query)) for query in batch]
