"""Progress with an estimate of what is left: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
SECONDS_BETWEEN_LINES = 30.0


def say(text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


def warn(text: str) -> None:
    console.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Meter:
    """What a stage spends: seconds generating, scoring and training, calls to engines, and tokens that they wrote."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.num_calls = 0
        self.num_tokens_written = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


class Bar:
    """Counts done units of ``total``; ``quiet`` on every rank but the first."""

    def __init__(self, label: str, total: int, quiet: bool = False) -> None:
        self._label, self._total, self._quiet = label, total, quiet
        self._done = self._skipped = 0
        self._started = self._last_line = time.monotonic()
        self._rich: Progress | None = None

    def __enter__(self) -> Bar:
        if not self._quiet and console.is_terminal:
            self._rich = Progress(
                TextColumn("  {task.description:<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
            )
            self._rich.start()
            self._task = self._rich.add_task(self._label, total=self._total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._rich:
            self._rich.stop()

    def advance(self, num_done: int = 1, cached: bool = False) -> None:
        """Count finished units; ``cached`` ones came from an earlier run and say nothing about speed."""
        self._done += num_done
        self._skipped += num_done if cached else 0
        now = time.monotonic()
        if self._rich:
            self._rich.advance(self._task, num_done)
        elif not self._quiet and self._done < self._total and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            fresh = self._done - self._skipped
            left = (now - self._started) / max(fresh, 1) * (self._total - self._done)
            say(f"  {self._label}: {self._done}/{self._total}, about {duration(left)} left")
