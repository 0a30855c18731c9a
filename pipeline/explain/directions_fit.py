"""Directions in hidden states: differences of means, how well they tell two classes apart, and their angles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import NotMeasuredError
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


@dataclass(frozen=True)
class Labelled:
    """The states of prompts of two classes.

    ``states``: (n, layers, hidden). ``positive``, ``groups`` and ``strata``: (n,). Prompts of one group, such as twins,
    stay together. Only prompts of one stratum are compared.
    """

    states: NDArray[np.float32]
    positive: NDArray[np.bool_]
    groups: NDArray[np.str_]
    strata: NDArray[np.str_]

    @classmethod
    def of(
        cls,
        states: NDArray[np.float32],
        positive: NDArray[np.bool_],
        groups: Sequence[str],
        strata: NDArray[np.str_] | None = None,
    ) -> Labelled:
        """Without strata, all prompts are compared."""
        return cls(states, positive, np.array(groups, str), np.full(len(states), "") if strata is None else strata)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int_]) -> Labelled:
        return Labelled(self.states[rows], self.positive[rows], self.groups[rows], self.strata[rows])

    def at(self, place: int) -> Labelled:
        """The states of one layer alone."""
        return Labelled(self.states[:, [place]], self.positive, self.groups, self.strata)


def compared(positive: NDArray[np.bool_], strata: NDArray[np.str_]) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
    """For each stratum with both classes: which are in it, (n,), and how many are positive and negative."""
    for stratum in np.unique(strata):
        inside = strata == stratum
        p, n = int((inside & positive).sum()), int((inside & ~positive).sum())
        if p and n:
            yield inside, p, n


def mean_differences(prompts: Labelled) -> Directions:
    """The mean of the positive class minus that of the negative class, at each layer (Arditi et al. 2024, arXiv
    2406.11717, section 2.3).

    A stratum of p positive and n negative members has the weight pn / (p + n), as in a regression with a constant for
    each stratum. Strata of one class alone count nothing.

    Raises:
        NotMeasuredError: no stratum has both classes.
    """
    means, weights = [], []
    for inside, p, n in compared(prompts.positive, prompts.strata):
        sides = (inside & prompts.positive, inside & ~prompts.positive)
        means.append([prompts.states[side].mean(0, dtype=np.float64) for side in sides])
        weights.append(p * n / (p + n))
    if not weights:
        raise NotMeasuredError("a fold of the training prompts has no pool with both classes")
    high, low = np.average(np.array(means), axis=0, weights=weights)
    return Directions(high - low, low)


def held_out_scores(prompts: Labelled, seed: int) -> Floats:
    """(n, layers): each prompt by a direction that was fitted without its fold."""
    scores = np.zeros(prompts.states.shape[:2])
    for learn, test in folds(prompts.positive, prompts.groups.tolist(), seed):
        scores[test] = mean_differences(prompts[learn]).scores(prompts.states[test])
    return scores


def pair_auc(scores: Floats, positive: NDArray[np.bool_], strata: NDArray[np.str_]) -> float:
    """The chance that a positive member has a higher score than a negative one of its stratum: the mean of the strata's
    AUCs, weighted by their pairs. All arguments are (n,)."""
    from sklearn.metrics import roc_auc_score

    aucs, pairs = [], []
    for inside, p, n in compared(positive, strata):
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


def fit(prompts: Labelled, seed: int, num_allowed: int | None = None) -> Fit:
    """Fit directions, and choose the layer and the threshold by cross-validation.

    Args:
        num_allowed: only the first so many layers may be chosen; None: all.
    """
    scores = held_out_scores(prompts, seed)
    aucs = [pair_auc(column, prompts.positive, prompts.strata) for column in scores.T]
    best = int(np.argmax(aucs[:num_allowed]))
    return Fit(mean_differences(prompts), best, aucs, equal_errors(prompts.positive, scores[:, best]))


def cosine(a: Floats, b: Floats) -> float:
    """Of two vectors of one size; 0 if one has no length."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length else 0.0


def expected_cosine(prompts: Labelled, place: int, seed: int) -> float:
    """About the cosine, at one layer, of this direction with one that other prompts of the same kind and number give.

    It is the mean cosine r of two random halves, which have half the prompts, as 2r / (1 + r) for all of them (Spearman
    1910, Brown 1910).
    """
    found = []
    for number in range(NUM_HALVINGS):
        half = np.array([derive_seed(seed, "half", number, group) % 2 == 0 for group in prompts.groups.tolist()])
        sides = [prompts.at(place)[side] for side in (half, ~half)]
        if all(any(compared(side.positive, side.strata)) for side in sides):
            a, b = (mean_differences(side).vectors[0] for side in sides)
            found.append(cosine(a, b))
    mean = max(float(np.mean(found)), 0.0) if found else 0.0
    return 2 * mean / (1 + mean)
