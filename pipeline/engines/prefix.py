"""A prefix that several rows share: find it, and compute it once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

MIN_TRAINED = 8  # tokens; a shorter prefix is not worth a forward pass of its own in training
MIN_GENERATED = 32  # tokens; below this, copying the cache costs more than it saves in generation


def common_length(rows: Sequence[list[int]], least: int = MIN_TRAINED) -> int:
    """The number of tokens that all rows begin with, without the last token of any row; 0 if it is below ``least``.

    Args:
        rows: token ids. A single row shares nothing.
    """
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)  # the two rows that differ earliest
    most = min(map(len, rows)) - 1
    length = next((place for place in range(most) if first[place] != last[place]), most)
    return length if length >= least else 0


def prefill(model: Any, prefix: torch.Tensor, num_rows: int, **options: Any) -> Any:
    """The key-value cache of a prefix for so many rows; gradients flow through it.

    Args:
        prefix: (1, tokens), token ids.
        options: more arguments of the forward pass.
    """
    cache = model(input_ids=prefix, use_cache=True, **options).past_key_values
    cache.batch_repeat_interleave(num_rows)
    return cache
