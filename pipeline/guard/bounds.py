"""Thresholds with a bound on false alarms that holds for any distribution of scores.

The alarms among n harmless requests are binomial, whatever their scores are. Lowering the threshold until the exact
test of "the rate is above ``max_rate``" fails first is fixed-sequence testing (Angelopoulos et al. 2021, arXiv
2110.01052, "learn then test"), so nothing needs a correction for choosing the threshold. Because the rate only grows
as the threshold falls, the last threshold that passes is an order statistic of the scores (Wilks 1941).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def allowed_alarms(num_harmless: int, max_rate: float, confidence: float) -> int | None:
    """The most alarms k among n harmless requests at which the rate is still shown to be at most ``max_rate``:
    P(Binomial(n, max_rate) ≤ k) ≤ 1 − confidence. None: n is too small for any threshold."""
    from scipy.stats import binom

    passing = np.flatnonzero(binom.cdf(np.arange(num_harmless), num_harmless, max_rate) <= 1 - confidence)
    return int(passing[-1]) if len(passing) else None


def num_needed(max_rate: float, confidence: float) -> int:
    """The fewest harmless requests with which a threshold can be set: without an alarm, (1 − max_rate)ⁿ must be at most
    1 − confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_rate))


def upper_bound(num_alarms: int, num_harmless: int, confidence: float) -> float:
    """The one-sided bound of Clopper and Pearson (1934) on a rate."""
    from scipy.stats import beta

    if num_alarms == num_harmless:
        return 1.0
    return float(beta.ppf(confidence, num_alarms + 1, num_harmless - num_alarms))


def threshold_of(harmless: NDArray[np.float64], max_rate: float, confidence: float) -> float:
    """The lowest threshold that passes: with k alarms allowed, the score of rank k + 1 from the top. A score *above* it
    is an alarm. With probability ``confidence`` over the draw of the (n,) scores, the rate of alarms on new harmless
    requests of the same kind is at most ``max_rate``; infinite if n is too small.
    """
    allowed = allowed_alarms(len(harmless), max_rate, confidence)
    return math.inf if allowed is None else float(np.sort(harmless)[::-1][allowed])
