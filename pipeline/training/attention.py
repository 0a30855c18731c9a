"""Attention for training on a CPU in 16 bits: torch's fused kernel takes five times as long backward on short rows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

NAME = "short_rows"
MOST_SCORES = 2**22  # of one layer, which keeps them for the backward pass: 8 MiB


def attend_in_products(model: PreTrainedModel) -> None:
    """Let a model that uses torch's fused attention compute it in plain products where gradients are needed.

    Elsewhere, and on long rows, it goes on with the fused kernel.
    """
    if model.config._attn_implementation == "sdpa" and model.device.type == "cpu" and model.dtype.itemsize == 2:
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(NAME)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers asks of an attention: (rows, positions, heads, head size), and no weights.

    Args:
        query: (rows, heads, positions, head size).
        key, value: (rows, key heads, keys, head size); each key head serves the same number of heads.
        attention_mask: (rows or 1, heads or 1, positions, keys), true where a position reads a key.
    """
    rows, heads, positions, size = query.shape
    few = rows * heads * positions * key.shape[2] <= MOST_SCORES
    plain = attention_mask is not None and attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    if not (torch.is_grad_enabled() and query.requires_grad and few and plain) or dropout or _has_values(options):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    assert attention_mask is not None
    grouped = query.reshape(rows, key.shape[1], -1, size)  # the heads of one key head, one below the other
    scores = (grouped @ key.transpose(-1, -2)).unflatten(2, (-1, positions))
    scores = scores * (size**-0.5 if scaling is None else scaling)
    scores = scores.masked_fill(~attention_mask[:, :, None], torch.finfo(scores.dtype).min)
    mixed = scores.softmax(dim=-1).flatten(2, 3) @ value
    return mixed.reshape(rows, heads, positions, -1).transpose(1, 2).contiguous(), None


def _has_values(options: dict[str, Any]) -> bool:
    """Whether the model asks for more than plain attention, such as a bias by position or sinks."""
    return any(options.get(name) is not None for name in ("position_bias", "softcap", "s_aux", "sinks", "cache"))
