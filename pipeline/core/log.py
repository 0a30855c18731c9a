"""Messages and progress. Messages go through ``logging`` to the terminal and to the run's log file. Progress, with an
estimate of the remaining time, is a bar on a terminal and a line every 30 seconds elsewhere."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.core.errors import CaiError

console = Console(stderr=True, highlight=False)
logger = logging.getLogger("cai")
SECONDS_BETWEEN_LINES = 30.0
LOG_FILE = "run.log"
_folders: list[Path] = []  # of the logs that are open


class _OnTerminal(logging.Handler):
    """Prints messages; warnings in yellow and errors in red."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else None
        text = record.getMessage()
        text = f"warning: {text}" if record.levelno == logging.WARNING else text
        console.print(text, style=style, soft_wrap=True, markup=False)


if not logger.handlers:
    logger.addHandler(_OnTerminal())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def say(text: str) -> None:
    logger.info(text)


def warn(text: str) -> None:
    logger.warning(text)


def quiet() -> None:
    """Show only warnings and errors on the terminal. The log file still gets every message."""
    logger.handlers[0].setLevel(logging.WARNING)


def keep_traceback(error: BaseException) -> None:
    """Write an error that does not end the run, with its traceback, to the log file only."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            _write_error(handler, error, with_traceback=True)


def _write_error(handler: logging.Handler, error: BaseException, with_traceback: bool) -> None:
    trace = (type(error), error, error.__traceback__) if with_traceback else None
    text = f"{type(error).__name__}: {error}"
    handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), trace))


@contextmanager
def logged_to(folder: Path) -> Iterator[None]:
    """Also append every message, with time and level, to ``run.log`` in a folder."""
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    _folders.append(folder)
    try:
        yield
    except BaseException as error:  # raised again; the caller prints it on the terminal
        expected = isinstance(error, CaiError | KeyboardInterrupt | SystemExit)
        _write_error(handler, error, with_traceback=not expected or error.__cause__ is not None)
        raise
    finally:
        _folders.remove(folder)
        logger.removeHandler(handler)
        handler.close()


def file_beside_the_log(name: str) -> Path:
    """Where to write what another program says: beside the log of the run, or in a temporary folder without a run."""
    return (_folders[-1] if _folders else Path(tempfile.mkdtemp(prefix="cai-"))) / name


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass
class Usage:
    """What an engine used: a server counts it, and its prices give ``money`` (None: not known)."""

    num_requests: int = 0
    num_tokens_read: int = 0
    num_tokens_written: int = 0
    money: float | None = None

    def add(self, other: Usage) -> None:
        self.num_requests += other.num_requests
        self.num_tokens_read += other.num_tokens_read
        self.num_tokens_written += other.num_tokens_written
        if other.money is not None:
            self.money = (self.money or 0.0) + other.money

    def __str__(self) -> str:
        money = "" if self.money is None else f", {self.money:,.2f} by the prices in the settings"
        return (
            f"{self.num_requests:,} requests, {self.num_tokens_read:,} tokens read, {self.num_tokens_written:,} written"
            f"{money}"
        )


class Meter:
    """Counts seconds of generating, scoring and training, calls to engines, and tokens that engines wrote.

    ``usage``: name of a server's model → what it used.
    """

    def __init__(self) -> None:
        self.usage: dict[str, Usage] = {}
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
    """Shows how many of ``total`` units are done. Set ``quiet`` on all ranks except the first."""

    def __init__(self, label: str, total: int, quiet: bool = False) -> None:
        self._label, self._total, self._quiet = label, total, quiet
        self._done = self._skipped = 0
        self._started = self._last_line = time.monotonic()
        self._rich: Progress | None = None

    def __enter__(self) -> Bar:
        if not self._quiet and console.is_terminal and logger.handlers[0].level < logging.WARNING:
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
        """Count finished units. ``cached`` ones come from an earlier run and are ignored in the time estimate."""
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
