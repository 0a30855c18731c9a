"""From scores to log-odds, by examples of both kinds (linear discriminant analysis in one dimension, Fisher 1936)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

MOST = 20.0  # log-odds beyond this say nothing more, and examples without any spread must not give infinity


@dataclass(frozen=True)
class Separation:
    """log-odds = slope · (score − middle)."""

    slope: float = 1.0
    middle: float = 0.0

    def log_odds(self, score: float) -> float:
        return min(max(self.slope * (score - self.middle), -MOST), MOST)


def separate(positive: Sequence[float], negative: Sequence[float], zero_divides: bool = False) -> Separation:
    """Fit two normal distributions with one variance, equally likely.

    If the positive examples don't score higher, the scores say nothing about the kind, and all log-odds are 0.

    Args:
        zero_divides: a score of 0 is already the middle for a good scorer. It is kept if the means of both kinds lie on
            their sides of it: then the examples only give the slope.

    Raises:
        ValueError: there are fewer than two scores of a kind.
    """
    if min(len(positive), len(negative)) < 2:
        raise ValueError("give at least two scores of each kind")
    high, low = fmean(positive), fmean(negative)
    squares = [(x - mean) ** 2 for scores, mean in ((positive, high), (negative, low)) for x in scores]
    variance = sum(squares) / (len(squares) - 2)
    if high <= low:
        return Separation(slope=0.0)
    middle = 0.0 if zero_divides and low < 0 < high else (high + low) / 2
    return Separation(slope=(high - low) / max(variance, 1e-9), middle=middle)
