"""Counts of what could not be used."""

from __future__ import annotations

from pathlib import Path

from pipeline.core import distributed
from pipeline.core.errors import NothingUsableError
from pipeline.core.log import warn

MOST_UNUSABLE = 0.05


def warn_of_share(num_bad: int, total: int, what: str, remedy: str, kept: Path | None = None) -> bool:
    """Warn if more than 5 % of ``total`` are bad, and say whether.

    Args:
        what: follows the numbers in the sentence.
        remedy: what to change.
        kept: the folder from which the same command would read the bad ones again.

    Raises:
        NothingUsableError: all of them are bad.
    """
    if total and num_bad == total:
        again = f"; if the settings stay the same, delete {kept} first" if kept else ""
        raise NothingUsableError(f"all {total} {what}; {remedy}{again}.")
    return warn_of_many(num_bad, total, what, remedy)


def warn_of_many(number: int, total: int, what: str, remedy: str) -> bool:
    """Warn if ``number`` is more than 5 % of ``total``, and say whether."""
    many = number > MOST_UNUSABLE * total
    if many and distributed.is_main():
        warn(f"{number} of {total} {what}; {remedy}.")
    return many
