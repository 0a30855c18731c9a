"""Sampling whose every draw belongs to one row: neither order nor batching can change it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

NUCLEUS_GUESS = 256  # tokens that nearly always hold the nucleus; sorting the whole vocabulary costs a decoding step


def nucleus_sample(
    logits: torch.Tensor, uniforms: torch.Tensor, temperatures: torch.Tensor, top_ps: torch.Tensor
) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution, most likely token first, at a uniform number.

    Args:
        logits: (rows, vocabulary).
        uniforms: (rows,), in [0, 1).
        temperatures: (rows,); 0 means greedy.
        top_ps: (rows,), in (0, 1]: the smallest set of most likely tokens with at least this mass is kept
            (Holtzman et al. 2020, arXiv 1904.09751, section 3.1).

    Returns:
        (rows,) token ids.
    """
    greedy = temperatures == 0
    if bool(greedy.all()):
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / torch.where(greedy, 1.0, temperatures).float()[:, None], dim=-1)
    likeliest, order = probabilities.topk(min(NUCLEUS_GUESS, probabilities.shape[-1]), dim=-1)
    if bool((likeliest.double().sum(dim=-1) < top_ps).any()):
        likeliest, order = probabilities.sort(dim=-1, descending=True, stable=True)
    likeliest = likeliest.double()
    mass_before = likeliest.cumsum(dim=-1) - likeliest
    kept = likeliest * (mass_before < top_ps[:, None])
    cumulative = kept.cumsum(dim=-1)
    targets = uniforms[:, None] * cumulative[:, -1:]
    # The first token whose cumulative mass exceeds the target; rounding must never push it past the kept ones.
    position = (cumulative <= targets).sum(dim=-1).clamp(max=(kept > 0).sum(dim=-1) - 1)
    position = torch.where(greedy, 0, position)
    return order.gather(1, position[:, None])[:, 0]


class SeededSampler(LogitsProcessor):
    """Leaves each row just one possible token, drawn by the row's own generator; decode greedily after it."""

    def __init__(self, seeds: Sequence[int], temperatures: Sequence[float], top_ps: Sequence[float]) -> None:
        self._generators = [random.Random(seed) for seed in seeds]
        self._temperatures = torch.tensor(temperatures, dtype=torch.float64)
        self._top_ps = torch.tensor(top_ps, dtype=torch.float64)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        device = scores.device
        uniforms = torch.tensor([generator.random() for generator in self._generators], dtype=torch.float64)
        tokens = nucleus_sample(scores, uniforms.to(device), self._temperatures.to(device), self._top_ps.to(device))
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)
