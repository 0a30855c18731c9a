"""Counts of what could not be used."""

from __future__ import annotations

from pipeline.core import distributed
from pipeline.core.errors import StageError
from pipeline.core.log import warn

MOST_UNUSABLE = 0.05


def warn_of_share(num_bad: int, total: int, what: str, remedy: str) -> bool:
    """Warn if more than 5 % of ``total`` are bad, and say whether. ``what`` follows the numbers; ``remedy`` says what
    to change.

    Raises:
        StageError: all of them are.
    """
    if total and num_bad == total:
        raise StageError(f"all {total} {what}; {remedy}.")
    many = num_bad > MOST_UNUSABLE * total
    if many and distributed.is_main():
        warn(f"{num_bad} of {total} {what}; {remedy}.")
    return many
