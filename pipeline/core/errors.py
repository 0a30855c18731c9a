"""What can go wrong, by who can put it right. The command line prints these without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class CaiError(Exception):
    """Anything the pipeline reports in one sentence."""

    exit_code = 1

    def __str__(self) -> str:
        return super().__str__().replace("?.", "?")  # a hint ends a sentence with a question


class ConfigError(CaiError):
    """The user's input is at fault: the message names the field, the value and the remedy."""

    exit_code = 2


class ArtifactError(CaiError):
    """A folder on disk is missing, damaged, or belongs to something else."""


class StageError(CaiError):
    """A stage could not finish; what it had made so far is kept."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or the list of known ones."""
    known = sorted(known)
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
