"""Errors, grouped by who can fix them. The command line prints them without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class CaiError(Exception):
    """An error that the pipeline reports in one sentence."""

    exit_code = 1

    def __str__(self) -> str:
        return super().__str__().replace("?.", "?")  # after the question of did_you_mean()


class ConfigError(CaiError):
    """The user's input is wrong. The message gives the field, the value and the remedy."""

    exit_code = 2


class ArtifactError(CaiError):
    """A file or folder on disk is missing, damaged or of another version."""


class StageError(CaiError):
    """A stage could not finish. Its work so far is kept."""


class NothingUsableError(StageError):
    """None of the answers that a stage asked for can be used."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. A KeyboardInterrupt, because asyncio would keep any other error in the task that it hits, and
    whoever waits for that task would wait for ever."""


class NotMeasuredError(Exception):
    """An optional part of an evaluation can't be measured. The message says why, as a clause for the report's notes."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, else ``"; known: a, b"`` with all of them."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; the name of its class if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
