"""Confidence intervals and significance tests, as pure functions.

scipy is imported inside functions: its import takes a second, and reading a configuration imports this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.evals.results import Estimate

NUM_RESAMPLES = 2000
SEED = 0  # of all random draws, so that the same results give the same report
MIN_RESAMPLED = 5  # with fewer values there is no bootstrap interval
ELO_PER_LOGIT = 400 / np.log(10)  # Elo's scale: 400 points are odds of ten to one


def wilson(count: int, total: int, confidence: float = 0.95) -> Estimate:
    """The rate count / total with its Wilson score interval (Wilson 1927); the value is None if total is 0."""
    if total == 0:
        return Estimate(value=None, count=0, total=0)
    low, high = _wilson_interval(count / total, total, confidence)
    return Estimate(value=count / total, low=low, high=high, count=count, total=total)


def _z(confidence: float) -> float:
    """The z for which a standard normal variable is between −z and z with this probability."""
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def _wilson_interval(p: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval around a share ``p`` of ``n``; scipy's function accepts only whole counts."""
    z = _z(confidence)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(min(p, max(0, centre - half))), float(max(p, min(1, centre + half)))  # rounding must not exclude p


def newcombe(lower: Estimate, higher: Estimate) -> tuple[float, float]:
    """Interval (low, high) of ``higher − lower`` from the intervals of two independent numbers, such as the Wilson
    intervals of two rates (Newcombe 1998, method 10). A bootstrap interval would have no width if all outcomes are
    equal; this one is still wide."""
    a, b = lower, higher
    assert a.value is not None and a.low is not None and a.high is not None
    assert b.value is not None and b.low is not None and b.high is not None
    difference = b.value - a.value
    below = float(np.hypot(b.value - b.low, a.high - a.value))
    above = float(np.hypot(b.high - b.value, a.value - a.low))
    return difference - below, difference + above


def mcnemar(num_gained: int, num_lost: int) -> float:
    """McNemar's exact two-sided p (McNemar 1947), from the numbers of pairs that changed in each direction."""
    discordant = num_gained + num_lost
    if discordant == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(num_gained, discordant, 0.5).pvalue)


def paired_rates(num_gained: int, num_lost: int, total: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """(difference, low, high) of two rates on the same prompts: adjusted Wald interval of Bonett & Price (2012).

    A bootstrap interval would have no width if no prompt, or every prompt, changed; this one is still wide.
    """
    gained, lost = (num_gained + 1) / (total + 2), (num_lost + 1) / (total + 2)
    half = _z(confidence) * np.sqrt((gained + lost - (gained - lost) ** 2) / (total + 2))
    centre = gained - lost
    return (num_gained - num_lost) / total, float(max(-1, centre - half)), float(min(1, centre + half))


def auc(positive: ArrayLike, negative: ArrayLike, confidence: float = 0.95) -> Estimate:
    """The chance that a random positive case has a higher score than a random negative one (a tie is ½). The value is
    None if a class is empty.

    The interval is Newcombe's (2006, Statistics in Medicine 25:559, method 5): all θ whose Hanley-McNeil standard error
    explains the distance to the value. A bootstrap or DeLong interval would have no width if the classes are separated;
    this one is still wide.

    Args:
        positive, negative: (m,) and (n,) scores.
    """
    from scipy.optimize import brentq
    from sklearn.metrics import roc_auc_score

    scores = np.concatenate([np.asarray(positive, float), np.asarray(negative, float)])
    m, n = len(np.asarray(positive)), len(np.asarray(negative))
    if not m or not n:
        return Estimate(value=None, total=m + n)
    value = float(roc_auc_score(np.arange(m + n) < m, scores))
    z, others = _z(confidence), (m + n) / 2 - 1

    def excess(theta: float) -> float:
        """Above zero where θ is too far from the value."""
        of_pairs = others * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return float((value - theta) ** 2 - z * z * theta * (1 - theta) * (1 + of_pairs) / (m * n))

    inside = min(max(value, 1e-9), 1 - 1e-9)  # at 0 and 1 the standard error is zero
    low = float(brentq(excess, 0, inside)) if value > 0 else 0.0
    high = float(brentq(excess, inside, 1)) if value < 1 else 1.0
    return Estimate(value=value, low=low, high=high, total=m + n)


def share(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of (n,) scores between 0 and 1 (a tie is ½) with Wilson's interval. It is valid because the variance of
    such scores is at most the variance of a rate with the same mean."""
    scores = np.asarray(values, float)
    if not len(scores):
        return Estimate(value=None)
    low, high = _wilson_interval(scores.mean(), len(scores), confidence)
    return Estimate(value=float(scores.mean()), low=low, high=high, total=len(scores))


def share_of_right(right: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Share of right answers: ``wilson`` if all scores are 1 or 0, else ``share`` (a tie is ½)."""
    if not len(right):
        return Estimate(value=None)
    if all(score in (0.0, 1.0) for score in right):
        return wilson(int(sum(right)), len(right), confidence)
    return share(right, confidence)


def paired_difference(before: ArrayLike, after: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean of ``after − before``, low, high), with a percentile bootstrap interval over prompts.

    Args:
        before, after: (num_prompts,) scores of the same prompts.
    """
    return bootstrap(np.asarray(after, float) - np.asarray(before, float), confidence=confidence)


def bootstrap(
    *samples: ArrayLike,
    statistic: Callable[..., NDArray] = lambda values: values.mean(-1),
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Percentile bootstrap (Efron 1979): (value, low, high) of a statistic over resampled prompts.

    ``scipy.stats.bootstrap(method="percentile", paired=True)`` gives the same numbers, but is slower and rejects a
    sample of one value.

    Args:
        samples: (n,) each, with the same n prompts in the same order, which are resampled together.
        statistic: gets one array (…, n) per sample, returns (…,).
    """
    arrays = [np.asarray(sample, float) for sample in samples]
    drawn = np.random.default_rng(SEED).integers(len(arrays[0]), size=(NUM_RESAMPLES, len(arrays[0])))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(*(array[drawn] for array in arrays)), [tail, 1 - tail])
    return float(statistic(*arrays)), float(low), float(high)


def resampled(numbers: tuple[float, ...], total: int) -> Estimate:
    """The result of ``bootstrap`` over ``total`` values; no interval if ``total`` is below ``MIN_RESAMPLED``."""
    value, low, high = numbers
    if total < MIN_RESAMPLED:
        return Estimate(value=value, total=total)
    return Estimate(value=value, low=low, high=high, total=total)


def sign_flip_test(differences: ArrayLike) -> float:
    """Two-sided p of "the mean of the (n,) differences is zero", from random flips of their signs (Fisher 1935)."""
    array = np.asarray(differences, float)
    if not array.any():
        return 1.0
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], size=(NUM_RESAMPLES, len(array)))
    return _share_as_far(abs(array.mean()), np.abs((signs * array).mean(-1)))


def _share_as_far(seen: float, by_chance: NDArray) -> float:
    """p of the value ``seen``, from (n,) values under the null hypothesis. ``seen`` counts as one more draw, so p is
    never 0 (Phipson & Smyth 2010). ``scipy.stats.permutation_test`` does the same, but takes at least twice as long."""
    as_far = by_chance >= seen - 1e-12
    return float((as_far.sum() + 1) / (len(by_chance) + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Holm 1979), in the order of the input; None stays None and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - rank)))
        corrected[i] = running
    return corrected


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that bound the share of false ones among those called significant (Benjamini & Hochberg 1995),
    in the order of the input; None stays None and is not counted."""
    from scipy.stats import false_discovery_control

    known = [p for p in p_values if p is not None]
    adjusted = iter(false_discovery_control(known) if known else ())
    return [None if p is None else float(next(adjusted)) for p in p_values]


def bradley_terry(wins: ArrayLike, confidence: float = 0.95) -> tuple[NDArray, NDArray, NDArray]:
    """Strengths on the Elo scale, with Wald intervals (Bradley & Terry 1952, by maximum likelihood).

    Args:
        wins: (n, n), number of wins of the row over the column; a tie is half a win for each.

    Returns:
        (ratings, low, high), each (n,), relative to the first player, whose rating is 0. A weak prior (one draw between
        every two players) keeps the rating finite for a player who never lost.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, log_expit

    table = np.asarray(wins, float)
    table = table + 0.5 * (1 - np.eye(len(table)))

    def loss(rest: NDArray) -> float:
        strengths = np.concatenate([[0.0], rest])
        return float(-(table * log_expit(strengths[:, None] - strengths[None, :])).sum())

    rest = minimize(loss, np.zeros(len(table) - 1), method="BFGS", options={"gtol": 1e-8}).x
    strengths = np.concatenate([[0.0], rest])
    p = expit(strengths[:, None] - strengths[None, :])
    weights = (table + table.T) * p * (1 - p)  # Fisher information of each pairing
    information = np.diag(weights.sum(1)) - weights
    spread = np.concatenate([[0.0], np.sqrt(np.diag(np.linalg.inv(information[1:, 1:])))])
    half = _z(confidence) * spread
    return strengths * ELO_PER_LOGIT, (strengths - half) * ELO_PER_LOGIT, (strengths + half) * ELO_PER_LOGIT


def spread_test(outcomes: Mapping[str, ArrayLike]) -> float | None:
    """p of "all groups are treated alike": a permutation test of the largest minus the smallest rate, with groups
    shuffled within each template. None for fewer than two groups or no templates.

    Args:
        outcomes: group → (num_templates,) of 0 and 1, templates in the same order in every group.
    """
    table = np.stack([np.asarray(values, float) for values in outcomes.values()])  # (groups, templates)
    if table.shape[0] < 2 or table.shape[1] == 0:
        return None
    shuffled = np.random.default_rng(SEED).permuted(np.broadcast_to(table.T, (NUM_RESAMPLES, *table.T.shape)), axis=-1)
    return _share_as_far(np.ptp(table.mean(1)), np.ptp(shuffled.mean(1), axis=-1))
