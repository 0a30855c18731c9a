"""A prefix that several rows share: find it, and compute it once for all of them, where the model allows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.engines.int8 import Int8Linear

MIN_SHARED = 8  # tokens; a shorter prefix is not worth a forward pass of its own
EXACT = 1e-3  # nats: the largest difference of log-probabilities in 32 bits
ROUNDED = (
    0.25  # nats: their largest mean difference in 16 or 8 bits; rounding makes 0.08, a wrong mask or position 0.37
)
_SHORT_SIGHT = re.compile(r"window|chunk|local(?!_expert)")  # in names of settings: attention sees only near tokens
_FOUND: dict[str, bool] = {}  # configuration of a model → whether it shares prefixes


def common_length(rows: Sequence[list[int]], least: int = MIN_SHARED) -> int:
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


def prefill(model: Any, prefix: torch.Tensor, num_rows: int) -> Any:
    """The key-value cache of a prefix for so many rows; gradients flow through it.

    Args:
        prefix: (1, tokens), token ids.
    """
    cache = cache_of(model, prefix)
    cache.batch_repeat_interleave(num_rows)
    return cache


def cache_of(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    """The key-value cache of these tokens, (rows, tokens); no logits are computed.

    Args:
        options: more arguments of the forward pass.
    """
    with head_reads(model, torch.zeros_like(ids, dtype=torch.bool)):
        return model(input_ids=ids, use_cache=True, **options).past_key_values


@contextmanager
def head_reads(model: Any, wanted: torch.Tensor) -> Iterator[None]:
    """Within it, a forward pass gives logits only of the wanted positions, (number of them, vocabulary).

    The head is often the largest product of a small model. For a slice of the positions, torch would also copy its
    weights for each row.

    Args:
        model: a causal language model, or one without a head.
        wanted: (rows, positions), boolean.
    """
    head = getattr(model, "module", model).get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][wanted], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


# --- What a model allows -------------------------------------------------------------------------------------------


def shares_prefixes(model: Any) -> bool:
    """Whether the cache of a prefix can be continued by several rows of different lengths.

    It needs full attention in every layer: a window would count the padding between prefix and rest, and a recurrent
    state would read it. The configuration says which layers a model has. A small computation then confirms it, because
    families of models differ in how they compute positions.

    Args:
        model: a causal language model, with or without adapters or a wrapper for data parallelism.
    """
    return continues_exactly(model, "prefix", _continued_error)


def continues_exactly(model: Any, way: str, error: Callable[[Any], float]) -> bool:
    """Whether the model has full attention in every layer, and computes rows with common beginnings in this way as each
    row alone. It is found out once for each configuration.

    Args:
        error: computes them on a few rows, without gradients: the difference in nats. It is ∞ if that fails.
    """
    model = getattr(model, "module", model)
    config = model.config.get_text_config()
    key = f"{way} {type(config).__name__} {_tolerance(model)} {config.to_json_string(use_diff=False)}"
    if key not in _FOUND:
        _FOUND[key] = _full_attention(config) and _error(model, error) <= _tolerance(model)
    return _FOUND[key]


def _error(model: Any, error: Callable[[Any], float]) -> float:
    with _evaluating(model):
        try:
            return error(model)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, RuntimeError, ValueError):  # another kind of cache, mask or positions
            return float("inf")


def reads_padding(model: Any) -> bool:
    """Whether padding on the left changes what the model computes, so that its rows can't be put into one batch."""
    return padded_error(model) > _tolerance(model)


def _full_attention(config: Any) -> bool:
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    near = [value for name, value in vars(config).items() if _SHORT_SIGHT.search(name) and "layers" not in name]
    return set(layers) == {"full_attention"} and not any(type(value) is int and value > 0 for value in near)


def _tolerance(model: Any) -> float:
    rounds = "_original_forward" in vars(model)  # Accelerate's mixed precision
    rounds = rounds or any(isinstance(layer, Int8Linear) for layer in model.modules())
    return EXACT if next(model.parameters()).dtype == torch.float32 and not rounds else ROUNDED


# --- Small computations that show it -------------------------------------------------------------------------------


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout, which would draw random numbers, and without gradients; then as it was before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def _continued_error(model: Any) -> float:
    """How far the continuation of a shared prefix is from each row alone, in nats."""
    rows = probe_rows(model)
    shared = common_length(rows)
    ids, mask = _padded([row[shared:] for row in rows], model)
    mask = torch.cat([mask.new_ones(len(rows), shared), mask], dim=1)
    cache = prefill(model, torch.tensor([rows[0][:shared]], device=ids.device), len(rows))
    positions = (mask.cumsum(dim=-1) - 1)[:, shared:]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]
    return difference_from_single_rows(model, rows, logits)


def padded_error(model: Any) -> float:
    """How far padding on the left changes log-probabilities, in nats."""
    rows = probe_rows(model)
    ids, mask = _padded(rows, model)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0)}
    with _evaluating(model):
        return difference_from_single_rows(model, rows, model(**inputs, use_cache=False).logits[:, -1])


def probe_rows(model: Any) -> list[list[int]]:
    """Three rows of different lengths with a common beginning; their token ids are spread over the vocabulary."""
    most = model.config.get_text_config().vocab_size
    tokens = [(7 + 7919 * place) % most for place in range(40)]
    return [tokens[:14] + tokens[20:26], tokens[:14] + tokens[26:27], tokens[:14] + tokens[28:37]]


def _padded(rows: Sequence[list[int]], model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask with padding on the left: (rows, tokens) each."""
    width, device = max(map(len, rows)), next(model.parameters()).device
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def difference_from_single_rows(model: Any, rows: Sequence[list[int]], logits: torch.Tensor) -> float:
    """The difference between log-probabilities after the rows, (rows, vocabulary), and those of each row alone.

    It is the largest one in 32 bits and the mean in 16 bits, where single ones are large by rounding alone.
    """
    alone = [model(input_ids=torch.tensor([row], device=logits.device), use_cache=False).logits[0, -1] for row in rows]
    found, expected = logits.float().log_softmax(-1), torch.stack(alone).float().log_softmax(-1)
    # Log-probabilities of tokens that never come are large numbers with large errors. Without training and with a large
    # vocabulary, even the likeliest token may be so unlikely.
    likely = (expected > -12) | (expected == expected.amax(dim=-1, keepdim=True))
    differences = (found - expected)[likely].abs()
    return float(differences.max() if _tolerance(model) == EXACT else differences.mean())
