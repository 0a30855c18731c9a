"""Directions in hidden states: differences of means, how well they tell two classes apart, and their angles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evals.probe import equal_errors, folds
from pipeline.records import derive_seed

Floats = NDArray[np.float64]
NUM_HALVINGS = 10


@dataclass(frozen=True)
class Directions:
    """One direction for each layer: ``vectors`` and ``origins``, (layers, hidden) each."""

    vectors: Floats
    origins: Floats

    def scores(self, states: NDArray[np.float32]) -> Floats:
        """(n, layers) for states of shape (n, layers, hidden): 0 at the mean of the negative class, 1 at that of the
        positive class."""
        lengths = np.maximum((self.vectors**2).sum(-1), np.finfo(float).tiny)
        return np.asarray(np.einsum("nlh,lh->nl", states - self.origins, self.vectors) / lengths)


def mean_differences(
    states: NDArray[np.float32], positive: NDArray[np.bool_], strata: NDArray[np.str_] | None = None
) -> Directions:
    """The mean of the positive class minus that of the negative class, at each layer (Arditi et al. 2024, arXiv
    2406.11717, section 2.3).

    With strata, only members of one stratum are compared. A stratum of p positive and n negative members has the weight
    pn / (p + n), as in a regression with a constant for each stratum. Strata of one class alone count nothing.

    Args:
        states: (n, layers, hidden).
        positive, strata: (n,).
    """
    strata = np.full(len(states), "") if strata is None else strata
    means, weights = [], []
    for stratum in np.unique(strata):
        inside = strata == stratum
        p, n = int((inside & positive).sum()), int((inside & ~positive).sum())
        if p and n:
            means.append([states[inside & side].mean(0, dtype=np.float64) for side in (positive, ~positive)])
            weights.append(p * n / (p + n))
    high, low = np.average(np.array(means), axis=0, weights=weights)
    return Directions(high - low, low)


def held_out_scores(
    states: NDArray[np.float32],
    positive: NDArray[np.bool_],
    groups: Sequence[str],
    seed: int,
    strata: NDArray[np.str_] | None = None,
) -> Floats:
    """(n, layers): each row by a direction that was fitted without its fold. Arguments as in ``mean_differences``.

    Args:
        groups: of each row; a group is in one fold.
    """
    scores = np.zeros(states.shape[:2])
    for learn, test in folds(positive, groups, seed):
        part = None if strata is None else strata[learn]
        scores[test] = mean_differences(states[learn], positive[learn], part).scores(states[test])
    return scores


def pair_auc(scores: Floats, positive: NDArray[np.bool_], strata: NDArray[np.str_] | None = None) -> float:
    """The chance that a positive member has a higher score than a negative one of its stratum: the mean of the strata's
    AUCs, weighted by their pairs. All arguments are (n,)."""
    from sklearn.metrics import roc_auc_score

    strata = np.full(len(scores), "") if strata is None else strata
    aucs, pairs = [], []
    for stratum in np.unique(strata):
        inside = strata == stratum
        p, n = int((inside & positive).sum()), int((inside & ~positive).sum())
        if p and n:
            aucs.append(roc_auc_score(positive[inside], scores[inside]))
            pairs.append(p * n)
    return float(np.average(aucs, weights=pairs))


@dataclass(frozen=True)
class Fit:
    """Directions fitted on training prompts. ``best`` is the place of the layer that tells the classes apart best
    there, by cross-validation; requests with a score of at least ``threshold`` at that layer count as positive."""

    directions: Directions
    best: int
    aucs: list[float]
    threshold: float

    @property
    def vector(self) -> Floats:
        """(hidden,) at the chosen layer."""
        return self.directions.vectors[self.best]

    def scores(self, states: NDArray[np.float32]) -> Floats:
        """(n,) at the chosen layer, for states of shape (n, layers, hidden)."""
        return self.directions.scores(states)[:, self.best]


def fit(
    states: NDArray[np.float32],
    positive: NDArray[np.bool_],
    groups: Sequence[str],
    seed: int,
    strata: NDArray[np.str_] | None = None,
    num_allowed: int | None = None,
) -> Fit:
    """Fit directions, and choose the layer and the threshold by cross-validation.

    Args:
        num_allowed: only the first so many layers may be chosen; None: all.
    """
    scores = held_out_scores(states, positive, groups, seed, strata)
    aucs = [pair_auc(column, positive, strata) for column in scores.T]
    best = int(np.argmax(aucs[:num_allowed]))
    return Fit(mean_differences(states, positive, strata), best, aucs, equal_errors(positive, scores[:, best]))


def cosine(a: Floats, b: Floats) -> float:
    """Of two vectors of one size; 0 if one has no length."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length else 0.0


def cosine_of_halves(
    states: NDArray[np.float32],
    positive: NDArray[np.bool_],
    groups: Sequence[str],
    seed: int,
    strata: NDArray[np.str_] | None = None,
) -> float:
    """The mean cosine of the directions that two random halves of the prompts give: about so much can be expected of
    two directions that are the same. ``states``: (n, hidden), of one layer."""
    found = []
    for number in range(NUM_HALVINGS):
        half = np.array([derive_seed(seed, "half", number, group) % 2 == 0 for group in groups])
        sides = [half, ~half]
        if all(_has_both(positive[side], None if strata is None else strata[side]) for side in sides):
            a, b = (
                mean_differences(states[side, None], positive[side], None if strata is None else strata[side]).vectors[
                    0
                ]
                for side in sides
            )
            found.append(cosine(a, b))
    return float(np.mean(found)) if found else 0.0


def _has_both(positive: NDArray[np.bool_], strata: NDArray[np.str_] | None) -> bool:
    """Whether a stratum has members of both classes."""
    names = np.full(len(positive), "") if strata is None else strata
    return any(len(set(positive[names == name].tolist())) == 2 for name in np.unique(names))
