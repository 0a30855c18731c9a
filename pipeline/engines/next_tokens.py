"""Logits of a model at the tokens of given replies: its distribution of the next token at each position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from pipeline.engines.prefix import head_reads

BATCH_ROWS = 16  # logits need rows · reply tokens · vocabulary


class Reply(NamedTuple):
    """Token ids of a prompt and of a reply to it; neither is empty."""

    prompt: list[int]
    reply: list[int]


def logits_of(model: Any, rows: Sequence[Reply]) -> torch.Tensor:
    """The logits from which each token of the replies would be drawn, given all tokens before it; gradients flow.

    Rows are padded on the right, where no earlier token sees it.

    Returns:
        (tokens of all replies, vocabulary), the replies one after the other.
    """
    device = next(model.parameters()).device
    tokens = [torch.tensor(row.prompt + row.reply[:-1], device=device) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
    wanted = pad_sequence(
        [torch.arange(len(ids), device=device) >= len(row.prompt) - 1 for ids, row in zip(tokens, rows, strict=True)],
        batch_first=True,
    )
    with head_reads(model, wanted):
        found: torch.Tensor = model(
            input_ids=pad_sequence(tokens, batch_first=True), attention_mask=mask, use_cache=False
        ).logits
    return found


@torch.inference_mode()
def reply_logits(model: Any, rows: Sequence[Reply]) -> Iterator[tuple[int, torch.Tensor]]:
    """(place of the row, its logits), batch by batch: (reply tokens, vocabulary) each, in the model's precision."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].prompt) - len(rows[place].reply))
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start : start + BATCH_ROWS]
        logits = logits_of(model, [rows[place] for place in batch])
        yield from zip(batch, logits.split([len(rows[place].reply) for place in batch]), strict=True)
