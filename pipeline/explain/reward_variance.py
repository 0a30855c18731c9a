"""What explains the variance of a reward model's scores: length, a refusal at the start, hedges, copied words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import regex
from numpy.typing import ArrayLike, NDArray

from pipeline.core.text import words
from pipeline.evals.results import Estimate
from pipeline.evals.shortcuts import SHORTCUTS
from pipeline.evals.statistics import bootstrap, resampled

MIN_LETTERS = 4  # of a word of the request that counts for the overlap
_HEDGE = regex.compile(
    r"\b(?:may|might|perhaps|possibly|maybe|probably|generally|usually|often|sometimes|likely|however|"
    r"it depends|in general|it(?:'|’)?s important to|please note|i think|i believe|not sure)\b",
    regex.IGNORECASE,
)


def overlap(request: str, reply: str) -> float:
    """The share of the request's words of at least four letters that are in the reply; 0 if it has none."""
    asked = {word for word in words(request) if len(word) >= MIN_LETTERS}
    return len(asked & set(words(reply))) / len(asked) if asked else 0.0


FEATURES: dict[str, Callable[[str, str], float]] = {
    "length": lambda request, reply: SHORTCUTS["length"](reply),
    "refusal at the start": lambda request, reply: SHORTCUTS["refusal at the start"](reply),
    "hedges": lambda request, reply: float(len(_HEDGE.findall(reply))),
    "overlap with the request": overlap,
}


def adjusted_r_squared(target: NDArray, columns: Sequence[NDArray]) -> NDArray:
    """The share of the variance of the target that a linear regression on the columns explains, adjusted for their
    number: 1 − (1 − R²)(n − 1)/(n − k − 1). It is about 0, and often below, if they explain nothing.

    Args:
        target: (…, n). columns: k of them, (…, n) each.

    Returns:
        (…,); 0 where the target does not vary.
    """
    n = target.shape[-1]
    centred = target - target.mean(-1, keepdims=True)
    total = (centred**2).sum(-1)
    if not columns:
        return np.zeros_like(total)
    x = np.stack([column - column.mean(-1, keepdims=True) for column in columns], axis=-1)  # (…, n, k)
    gram = np.einsum("...ni,...nj->...ij", x, x)
    along = np.einsum("...ni,...n->...i", x, centred)
    explained = np.einsum("...i,...ij,...j->...", along, np.linalg.pinv(gram, hermitian=True), along)
    r_squared = np.divide(explained, total, out=np.zeros_like(total), where=total > 0)
    adjusted = 1 - (1 - r_squared) * (n - 1) / (n - len(columns) - 1)
    return np.where(total > 0, adjusted, 0.0)


def partial_r_squared(target: NDArray, columns: Sequence[NDArray], place: int) -> NDArray:
    """Of the variance that the other columns leave, the share that this one explains: 1 − (1 − R²) / (1 − R² without
    it), both adjusted. Shapes as in ``adjusted_r_squared``."""
    others = [column for other, column in enumerate(columns) if other != place]
    left = 1 - adjusted_r_squared(target, others)
    unexplained = 1 - adjusted_r_squared(target, columns)
    return np.where(left > 1e-9, 1 - unexplained / np.maximum(left, 1e-9), 0.0)


def explained(scores: ArrayLike, columns: Mapping[str, ArrayLike], confidence: float) -> dict[str, dict[str, Estimate]]:
    """``together`` → {"all": …}, and for each feature the share that it explains alone, and beyond the others.

    Args:
        scores, columns: (n,) each, one reply for each request.
    """
    target = np.asarray(scores, float)
    features = [_standardised(np.asarray(column, float)) for column in columns.values()]

    def estimate(statistic: Callable[..., NDArray], used: Sequence[NDArray]) -> Estimate:
        return resampled(bootstrap(target, *used, statistic=statistic, confidence=confidence), len(target))

    found = {"together": {"all": estimate(lambda y, *x: adjusted_r_squared(y, x), features)}}
    for place, name in enumerate(columns):
        found[name] = {
            "alone": estimate(lambda y, *x: adjusted_r_squared(y, x), [features[place]]),
            "beyond": estimate(lambda y, *x, at=place: partial_r_squared(y, x, at), features),
        }
    return found


def _standardised(column: NDArray) -> NDArray:
    spread = column.std()
    return (column - column.mean()) / spread if spread else np.zeros_like(column)
