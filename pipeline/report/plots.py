"""Two small drawings as inline SVG: a rate with its interval, and a loss curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup


def interval_svg(rate: dict[str, Any], width: int = 120, height: int = 14) -> Markup:
    """A rate between 0 and 1: its interval as a line, its value as a dot."""
    if rate["value"] is None:
        return Markup("")
    low, value, high = (4 + rate[key] * (width - 8) for key in ("low", "value", "high"))
    middle = height / 2
    return Markup(
        f'<svg class="interval" width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<line class="axis" x1="4" x2="{width - 4}" y1="{middle}" y2="{middle}"/>'
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<circle cx="{value:.1f}" cy="{middle}" r="3.5"/></svg>'
    )


def loss_svg(values: Sequence[float], label: str, width: int = 320, height: int = 90) -> Markup:
    """A curve over steps, its largest and smallest value written beside it."""
    if len(values) < 2:
        return Markup("")
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = " ".join(
        f"{i * (width - 60) / (len(values) - 1):.1f},{6 + (high - value) / span * (height - 12):.1f}"
        for i, value in enumerate(values)
    )
    return Markup(
        f'<svg class="curve" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}: from {values[0]:.3g} to {values[-1]:.3g} in {len(values)} steps">'
        f'<polyline points="{points}"/><text x="{width - 54}" y="12">{high:.3g}</text>'
        f'<text x="{width - 54}" y="{height - 4}">{low:.3g}</text></svg>'
    )
