"""Cut tokenised training rows to a maximal length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.core.errors import ConfigError

REPLIES = ("completion_ids", "chosen_ids", "rejected_ids")  # TRL's names for columns of replies


def cut_to_length(rows: Sequence[dict[str, Any]], most: int, field: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Cut off the ends of replies so that no row is longer than ``most`` tokens.

    Prompts are never cut. A row is left out if its prompt alone has ``most`` or more tokens.

    Args:
        rows: token ids of the prompt in ``prompt_ids``, and of replies in any of the columns ``REPLIES``.
        most: the largest number of tokens of a prompt and one reply.
        field: the name of ``most`` in the configuration, for the error message.

    Returns:
        the rows, and ``num_rows_cut`` and ``num_rows_left_out``.

    Raises:
        ConfigError: no row is left.
    """
    fitting, num_cut = [], 0
    for row in rows:
        most_in_reply = most - len(row["prompt_ids"])
        if most_in_reply < 1:
            continue
        replies = {name: row[name][:most_in_reply] for name in REPLIES if name in row}
        num_cut += any(len(reply) < len(row[name]) for name, reply in replies.items())
        fitting.append({**row, **replies})
    if not fitting:
        raise ConfigError(f"{field} is {most}, but every prompt alone has at least so many tokens; raise it.")
    return fitting, {"num_rows_cut": num_cut, "num_rows_left_out": len(rows) - len(fitting)}
