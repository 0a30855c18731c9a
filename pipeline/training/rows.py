"""Training rows in tokens, cut to the length that a trainer reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.core.errors import ConfigError

REPLIES = ("completion_ids", "chosen_ids", "rejected_ids")  # TRL's names for columns of replies


def cut_to_length(rows: Sequence[dict[str, Any]], most: int, field: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Cut off the ends of replies that make a row longer than ``most`` tokens.

    The prompt is never cut. A row whose prompt alone has ``most`` tokens or more has nothing to learn and is left out.

    Args:
        rows: token ids of a prompt in ``prompt_ids``, and of what may follow it in any column of ``REPLIES``.
        field: the name of ``most`` in the configuration.

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
        raise ConfigError(f"{field} is {most}, and every prompt has that many tokens without its reply; raise it.")
    return fitting, {"num_rows_cut": num_cut, "num_rows_left_out": len(rows) - len(fitting)}
