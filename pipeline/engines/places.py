"""Hidden states at chosen tokens of each row: the end of a prompt, and ends of a reply so far.

In a causal model a state depends only on the tokens up to it, so one pass over a prompt with its whole reply gives the
states of every shorter reply, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from pipeline.engines.models import context_of
from pipeline.engines.states import batches_of, layers_of


@torch.inference_mode()
def states_at(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    places: Sequence[Sequence[int]],
    layers: Sequence[int],
    batch_rows: int,
) -> list[NDArray[np.float32]]:
    """(places, layers, hidden) for each row of token ids.

    Args:
        places: for each row, the indices of the tokens whose states are read.
        layers: numbers of layers, from 1.

    Returns:
        NaN for a row that does not fit the context.

    Raises:
        NotMeasuredError: the model has no list of layers.
    """
    blocks = layers_of(model)
    size = model.config.get_text_config().hidden_size
    found = [np.full((len(mine), len(layers), size), np.nan, dtype=np.float32) for mine in places]
    for batch in batches_of(rows, batch_rows, context_of(model.config)):
        tokens = [torch.tensor(rows[index], device=model.device) for index in batch]
        ids = pad_sequence(tokens, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
        which = [(row, place) for row, index in enumerate(batch) for place in places[index]]
        with kept_at([blocks[layer - 1] for layer in layers], which) as kept:
            model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        states = torch.stack(kept, dim=1).numpy()  # (all places of the batch, layers, hidden)
        ends = np.cumsum([len(places[index]) for index in batch])
        for index, part in zip(batch, np.split(states, ends[:-1]), strict=True):
            found[index] = part
    return found


@contextmanager
def kept_at(layers: Sequence[torch.nn.Module], which: Sequence[tuple[int, int]]) -> Iterator[list[torch.Tensor]]:
    """A block that fills a list with the output of each layer, in the order of ``layers``, at these (row, place) pairs:
    (pairs, hidden) each."""
    kept = [torch.empty(0)] * len(layers)
    rows, places = [row for row, _ in which], [place for _, place in which]

    def keeper(number: int) -> Callable[[torch.nn.Module, Any, Any], None]:
        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            kept[number] = states[rows, places].float().cpu()

        return keep

    hooks = [layer.register_forward_hook(keeper(number)) for number, layer in enumerate(layers)]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
