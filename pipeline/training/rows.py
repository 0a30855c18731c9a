"""Cut tokenised training rows to a maximal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.core.counts import warn_of_many
from pipeline.core.errors import ConfigError

REPLIES = ("completion_ids", "chosen_ids", "rejected_ids")  # TRL's names for columns of replies


def cut_row(row: dict[str, Any], most: int) -> dict[str, Any] | None:
    """The row with at most ``most`` tokens; None if its prompt leaves no room for a reply."""
    room = most - len(row["prompt_ids"])
    return {**row, **{name: row[name][:room] for name in REPLIES if name in row}} if room > 0 else None


def cut_to_length(rows: Sequence[dict[str, Any]], most: int, field: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Cut off the ends of replies so that no row is longer than ``most`` tokens.

    Prompts are never cut. A row is left out if its prompt alone has ``most`` or more tokens, and a pair if both replies
    are the same after the cut, because it teaches nothing. Warns if these are more than 5 % of the rows.

    Args:
        rows: token ids of the prompt in ``prompt_ids``, and of replies in any of the columns ``REPLIES``.
        most: the largest number of tokens of a prompt and one reply.
        field: the name of ``most`` in the configuration, for the messages.

    Returns:
        the rows, and ``num_rows`` (before), ``num_rows_cut``, ``num_rows_left_out`` and, for pairs, ``num_rows_equal``.

    Raises:
        ConfigError: no row is left.
    """
    fitting, num_cut, num_equal = [], 0, 0
    for row in rows:
        cut = cut_row(row, most)
        if cut is None:
            continue
        if "chosen_ids" in cut and cut["chosen_ids"] == cut["rejected_ids"]:
            num_equal += 1
            continue
        num_cut += cut != row
        fitting.append(cut)
    num_left_out = len(rows) - len(fitting) - num_equal
    if not fitting and num_equal:
        raise ConfigError(f"{field} is {most}, and both replies of every pair that fits are the same; raise it.")
    if not fitting:
        raise ConfigError(f"{field} is {most}, but every prompt alone has at least so many tokens; raise it.")
    longer = f"rows are longer than {field}={most}, so their replies are cut without an end"
    too_long = f"rows are left out, because their prompts alone have {field}={most} or more tokens"
    equal = "pairs are left out, because the tokens that are compared are the same in both replies"
    warn_of_many(num_cut, len(rows), longer, f"raise {field}")
    warn_of_many(num_left_out, len(rows), too_long, f"raise {field}")
    warn_of_many(num_equal, len(rows), equal, f"raise align.num_reply_tokens or {field}")
    counts = {"num_rows": len(rows), "num_rows_cut": num_cut, "num_rows_left_out": num_left_out}
    return fitting, counts | ({"num_rows_equal": num_equal} if "chosen_ids" in fitting[0] else {})
