"""Rates with intervals."""

from __future__ import annotations

from pydantic import BaseModel
from scipy.stats import binomtest


class Rate(BaseModel):
    """``count`` of ``total``, with the Wilson score interval (Wilson 1927); no estimate where nothing was counted."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float | None:
        return self.count / self.total if self.total else None

    def __str__(self) -> str:
        if not self.total:
            return "– (0)"
        return f"{100 * self.count / self.total:.0f} % [{100 * self.low:.0f}, {100 * self.high:.0f}] ({self.total})"


def wilson(count: int, total: int, confidence: float = 0.95) -> Rate:
    if total == 0:
        return Rate(count=0, total=0, low=0.0, high=1.0)
    interval = binomtest(count, total).proportion_ci(confidence, method="wilson")
    return Rate(count=count, total=total, low=float(interval.low), high=float(interval.high))


def overlap(a: Rate, b: Rate) -> bool:
    """Whether two intervals overlap: then there is no evidence of a change."""
    return a.low <= b.high and b.low <= a.high
