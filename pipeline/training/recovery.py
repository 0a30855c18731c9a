"""Recovery rows: the reply has begun as an answer; decline all the same where declining is right.

From Qi et al. 2024, "Safety Alignment Should Be Made More Than Just a Few Tokens Deep" (arXiv 2406.05946, section 3).
Here there are such rows of harmless requests, too: where answering is right, the answer that has begun goes on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.training.rows import cut_row

if TYPE_CHECKING:
    from pipeline.chat import Renderer

BREAK = "\n\n"
"""Between the beginning of the answer and the refusal, which is a paragraph of its own."""


def recovery_rows(
    rows: Sequence[dict[str, Any]], chat: Renderer, config: Any, rng: random.Random
) -> list[dict[str, Any]]:
    """Draw rows, and move the first tokens of their answer into the prompt. The refusal competes with its rest.

    Args:
        rows: tokenised, with TRL's column names; "chosen" is reply A, the refusal, and "rejected" is the answer.
        config: ``recovery_ratio`` (recovery rows per row), ``recovery_tokens`` (the most tokens that are moved) and
            ``max_length_tokens``.

    Returns:
        at most one for each row with an answer of two tokens or more, in random order.
    """
    able = [row for row in rows if len(row["rejected_ids"]) > 1]
    drawn = rng.sample(able, min(len(able), round(config.recovery_ratio * len(rows))))
    break_ids = chat.text_ids(BREAK)
    begun = [
        _begun(row, rng.randint(1, min(config.recovery_tokens, len(row["rejected_ids"]) - 1)), break_ids)
        for row in drawn
    ]
    return [cut for row in begun if (cut := cut_row(row, config.max_length_tokens))]


def _begun(row: dict[str, Any], num_given: int, break_ids: list[int]) -> dict[str, Any]:
    given, rest = row["rejected_ids"][:num_given], row["rejected_ids"][num_given:]
    return {
        **row,
        "prompt_ids": row["prompt_ids"] + given,
        "chosen_ids": break_ids + row["chosen_ids"],
        "rejected_ids": rest,
        "num_compared": len(break_ids) + row["num_compared"],
    }
