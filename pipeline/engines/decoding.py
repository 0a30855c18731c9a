"""Sample a batch token by token, for models with full attention: memory for all tokens is set aside at the start, and
rows that have ended are taken out of the batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pipeline.engines.prefix import cache_of
from pipeline.engines.sampling import SeededSampler

MOST_ACTIVE = 7 / 8  # ended rows are taken out when at most so many are left: each time, the cache is copied


class RoomyLayer(DynamicLayer):
    """The keys and values of one layer, with room for more tokens. An ordinary layer copies all of them at each token.

    Args:
        layer: the keys and values of the tokens so far, (rows, heads, tokens, head size).
        num_copies: so many rows begin with each of its rows.
        room: the number of tokens that will be added.
    """

    def __init__(self, layer: DynamicLayer, num_copies: int, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._all_keys = _with_room(layer.keys, num_copies, room)
        self._all_values = _with_room(layer.values, num_copies, room)
        self._show(layer.keys.shape[-2])

    def _show(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self.keys, self.values = self._all_keys[:, :, :num_tokens], self._all_values[:, :, :num_tokens]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_before, num_tokens = self._num_tokens, self._num_tokens + key_states.shape[-2]
        assert num_tokens <= self._all_keys.shape[-2], "more tokens than there is room for"
        self._all_keys[:, :, num_before:num_tokens] = key_states
        self._all_values[:, :, num_before:num_tokens] = value_states
        self._show(num_tokens)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self._show(self._num_tokens)


def _with_room(states: torch.Tensor, num_copies: int, room: int) -> torch.Tensor:
    rows, heads, num_tokens, size = states.shape
    whole = states.new_empty(rows, num_copies, heads, num_tokens + room, size)
    whole[:, :, :, :num_tokens] = states[:, None]
    return whole.flatten(0, 1)


def make_room(cache: DynamicCache, num_copies: int, room: int) -> None:
    """Repeat each row of a cache and set memory aside for ``room`` more tokens. Other kinds of layers stay ordinary."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.get_seq_length():
            cache.layers[index] = RoomyLayer(layer, num_copies, room)
        else:
            layer.batch_repeat_interleave(num_copies)


@torch.inference_mode()
def decode(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    num_shared: int,
    sampler: SeededSampler,
    limits: Sequence[int],
    stop_ids: Collection[int],
) -> list[list[int]]:
    """Sample a reply for each row.

    Args:
        model: a causal language model with full attention (``prefix.shares_prefixes``).
        ids, mask: (rows, width), prompts with padding before their rows' own tokens.
        num_shared: all rows begin with the same so many tokens, which are computed once.
        limits: the most tokens of each reply.

    Returns:
        the tokens of each reply, with the token that ends it unless the limit came first.
    """
    rows, width = ids.shape
    room = max(limits)
    mask = torch.cat([mask, mask.new_ones(rows, room)], dim=1)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    cache = None
    if num_shared:
        cache = cache_of(model, ids[:1, :num_shared])
        make_room(cache, rows, width - num_shared + room)
    replies: list[list[int]] = [[] for _ in range(rows)]
    active = torch.arange(rows)  # the row of each line of the batch
    new, first = ids[:, num_shared:], num_shared
    while True:
        last = first + new.shape[1]
        output = model(
            input_ids=new,
            attention_mask=mask[:, :last],
            position_ids=positions[:, first:last],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if cache is None:
            cache = output.past_key_values
            make_room(cache, 1, room)
        drawn = sampler.draw(output.logits[:, -1], active)
        going = _append(drawn.tolist(), active.tolist(), replies, limits, stop_ids)
        if not going:
            return replies
        if len(going) <= MOST_ACTIVE * len(active):
            kept = torch.tensor(going, device=ids.device)
            cache.batch_select_indices(kept)
            active, drawn, mask, positions = active[going], drawn[kept], mask[kept], positions[kept]
        new, first = drawn[:, None], last


def _append(
    tokens: list[int], active: list[int], replies: list[list[int]], limits: Sequence[int], stop_ids: Collection[int]
) -> list[int]:
    """Add a token to each unfinished reply. Returns the lines of the batch whose replies go on."""
    going = []
    for line, (row, token) in enumerate(zip(active, tokens, strict=True)):
        reply = replies[row]
        if len(reply) >= limits[row] or (reply and reply[-1] in stop_ids):
            continue
        reply.append(token)
        if len(reply) < limits[row] and token not in stop_ids:
            going.append(line)
    return going
