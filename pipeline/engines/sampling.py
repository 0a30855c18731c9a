"""Sampling with one random generator per row, so that the order and the batch of a row do not change its tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

NUCLEUS_GUESS = 256  # so many tokens nearly always contain the nucleus; sorting the whole vocabulary is much slower


def nucleus_sample(
    logits: torch.Tensor, uniforms: torch.Tensor, temperatures: torch.Tensor, top_ps: torch.Tensor
) -> torch.Tensor:
    """Draw one token per row: invert the cumulative distribution (most likely token first) at a uniform number.

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
    mass = likeliest.double().sum(dim=-1)
    # They are enough if they contain the nucleus or, with top_p 1, if the drawn token is among them.
    enough = greedy | (mass >= top_ps) | ((top_ps == 1) & (uniforms * probabilities.double().sum(dim=-1) < mass))
    drawn = _invert(likeliest, order, uniforms, top_ps, probabilities)
    if not bool(enough.all()):
        rest = ~enough
        ranked, places = probabilities[rest].sort(dim=-1, descending=True, stable=True)
        drawn[rest] = _invert(ranked, places, uniforms[rest], top_ps[rest], ranked)
    return torch.where(greedy, order[:, 0], drawn)


def _invert(
    likeliest: torch.Tensor,
    order: torch.Tensor,
    uniforms: torch.Tensor,
    top_ps: torch.Tensor,
    probabilities: torch.Tensor,
) -> torch.Tensor:
    """The token at which the cumulative mass of the nucleus passes the uniform number.

    Args:
        likeliest, order: (rows, k), the largest probabilities in descending order, and their token ids.
        probabilities: (rows, vocabulary); their sum is the total mass if top_p is 1.

    Returns:
        (rows,) token ids.
    """
    likeliest = likeliest.double()
    mass_before = likeliest.cumsum(dim=-1) - likeliest
    kept = likeliest * (mass_before < top_ps[:, None])
    cumulative = kept.cumsum(dim=-1)
    whole = torch.where(top_ps == 1, probabilities.double().sum(dim=-1), cumulative[:, -1])
    # The first token whose cumulative mass exceeds the target; the clamp keeps rounding errors inside the nucleus.
    position = (cumulative <= (uniforms * whole)[:, None]).sum(dim=-1).clamp(max=(kept > 0).sum(dim=-1) - 1)
    return order.gather(1, position[:, None])[:, 0]


class SeededSampler(LogitsProcessor):
    """Draws one token per row by that row's random generator.

    As a logits processor it sets all logits to −inf except that token's: decode greedily after it.
    """

    def __init__(self, seeds: Sequence[int], temperatures: Sequence[float], top_ps: Sequence[float]) -> None:
        self._generators = [random.Random(seed) for seed in seeds]
        self._temperatures = torch.tensor(temperatures, dtype=torch.float64)
        self._top_ps = torch.tensor(top_ps, dtype=torch.float64)

    def draw(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Draw a token for each of these rows. ``logits``: (rows, vocabulary); ``rows``: (rows,), on the CPU."""
        uniforms = torch.tensor([self._generators[row].random() for row in rows.tolist()], dtype=torch.float64)
        options = (uniforms, self._temperatures[rows], self._top_ps[rows])
        return nucleus_sample(logits, *(option.to(logits.device) for option in options))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        tokens = self.draw(scores, torch.arange(len(scores)))
        return torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)
