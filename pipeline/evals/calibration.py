"""Accuracy and calibration of a reward model on held-out pairs, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import entr, expit, log_expit

from pipeline.evals.statistics import bootstrap, resampled, share_of_right
from pipeline.records import RewardScore

NUM_BINS = 5


class Bin(BaseModel):
    """Pairs with a predicted probability in (low, high]: their number, mean prediction and mean label."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    low: float
    high: float
    count: int
    predicted: float
    label: float


def cross_entropies(margins: ArrayLike, labels: ArrayLike) -> NDArray:
    """The training loss of each pair, −p·log σ(m) − (1−p)·log σ(−m) (Bradley & Terry 1952), in nats: (pairs,).

    Args:
        margins: (pairs,), reward of reply A minus reward of reply B.
        labels: (pairs,), probability that reply A is better.
    """
    m, p = np.asarray(margins, float), np.asarray(labels, float)
    return -p * log_expit(m) - (1 - p) * log_expit(-m)


def entropies(labels: ArrayLike) -> NDArray:
    """The entropy of each (pairs,) label in nats, which is the minimum of ``cross_entropies``: (pairs,)."""
    p = np.asarray(labels, float)
    return entr(p) + entr(1 - p)


def agreement(margins: ArrayLike, labels: ArrayLike) -> NDArray:
    """(pairs,): 1 if reward and label prefer the same reply, 0 if not, ½ if the margin is 0.

    No label may be ½, because it prefers neither reply. Arguments as in ``cross_entropies``.
    """
    sides = np.sign(np.asarray(margins, float)) * np.sign(np.asarray(labels, float) - 0.5)
    return (1 + sides) / 2


def reliability(margins: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> list[Bin]:
    """Predicted probabilities and labels in bins of equal width; empty bins are left out.

    The order of the replies in a pair has no meaning. So each probability is that of the reply that the model prefers,
    and is between ½ and 1. Arguments as in ``cross_entropies``.
    """
    m, p = np.asarray(margins, float), np.asarray(labels, float)
    predicted = expit(np.abs(m))
    observed = np.where(m >= 0, p, 1 - p)
    edges = np.linspace(0.5, 1, num_bins + 1)
    place = np.clip(np.searchsorted(edges, predicted, side="left") - 1, 0, num_bins - 1)
    return [
        Bin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            count=int(here.sum()),
            predicted=float(predicted[here].mean()),
            label=float(observed[here].mean()),
        )
        for index in range(num_bins)
        if (here := place == index).any()
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """Mean |prediction − label| over the bins, weighted by their pairs (Naeini et al. 2015; Guo et al. 2017, arXiv
    1706.04599, equation 3); None without pairs. With few pairs per bin it is large by chance."""
    total = sum(found.count for found in bins)
    return sum(found.count * abs(found.predicted - found.label) for found in bins) / total if total else None


def terciles(values: ArrayLike) -> list[NDArray]:
    """The indices of the smallest, middle and largest third of (n,) values."""
    return np.array_split(np.argsort(np.asarray(values, float), kind="stable"), 3)


def held_out_metrics(scores: Sequence[RewardScore], confidence: float = 0.95) -> dict[str, Any]:
    """All metrics of a reward model on its held-out pairs, as values for JSON; losses are in nats.

    Accuracy uses only pairs whose label is not ½; loss and calibration use all pairs.
    """
    decided = [score for score in scores if score.probability_a != 0.5]
    right = agreement([s.reward_a - s.reward_b for s in decided], [s.probability_a for s in decided])
    longer = np.array([s.num_words_a - s.num_words_b for s in decided], float)
    preferred_is_longer = agreement(longer, [s.probability_a for s in decided])
    thirds = terciles([abs(s.reward_a - s.reward_b) for s in decided])
    sources = np.array([s.source for s in decided])
    pools = np.array(["" if s.source == "human" else s.pool for s in decided])  # people's pairs are in no pool

    def accuracy(which: NDArray) -> dict[str, Any]:
        return share_of_right(right[which].tolist(), confidence).model_dump()

    everything = np.arange(len(decided))
    margins, labels = [s.reward_a - s.reward_b for s in scores], [s.probability_a for s in scores]
    losses = cross_entropies(margins, labels)
    bins = reliability(margins, labels)
    return {
        "accuracy": accuracy(everything),
        "accuracy_by_source": {str(source): accuracy(sources == source) for source in sorted(set(sources))},
        "accuracy_by_pool": {str(pool): accuracy(pools == pool) for pool in sorted(set(pools) - {""})},
        "accuracy_by_margin": {
            name: accuracy(third) for name, third in zip(("small", "middle", "large"), thirds, strict=True)
        },
        "accuracy_by_length": {
            "longer_preferred": accuracy(preferred_is_longer == 1),
            "shorter_preferred": accuracy(preferred_is_longer == 0),
        },
        "accuracy_of_longer_reply": share_of_right(preferred_is_longer.tolist(), confidence).model_dump(),
        "loss_held_out": resampled(bootstrap(losses, confidence=confidence), len(losses)).model_dump(),
        "loss_of_one_half": math.log(2),
        "loss_least_possible": float(entropies(labels).mean()),
        "calibration_error": expected_calibration_error(bins),
        "reliability": [found.model_dump() for found in bins],
    }
