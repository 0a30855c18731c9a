"""Numbers and names as the report writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.evals.results import DIRECT, Change, Estimate
from pipeline.evals.scores import Unit

_NAMES = {DIRECT: "no attack", "sft": "SFT"}


def number(value: Any) -> str:
    """Three significant digits; whole numbers as they are; an en dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | str):
        return str(value)
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "\u2212")


def two_places(number: float) -> str:
    return f"{number:+.2f}".replace("-", "\u2212")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}\u00a0%"


def words(identifier: str) -> str:
    """An identifier as words: ``self_harm`` → ``self harm``."""
    return _NAMES.get(identifier, identifier.replace("_", " "))


def counted(numbers: Mapping[str, int], what: str = "pairs") -> str:
    """``30 harmlessness and 28 helpfulness pairs``."""
    parts = [f"{n} {words(name)}" for name, n in numbers.items()]
    return f"{listed(parts, 'and')} {what}" if parts else f"no {what}"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table; an ``Estimate`` with its interval."""
    if not rows:
        return ""
    cells = [[words(str(name)) for name in rows[0]], ["---"] * len(rows[0])]
    cells += [[_cell(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(value: Any) -> str:
    text = str(value) if isinstance(value, Estimate | str) else number(value)
    return text.replace("|", "\\|").replace("\n", " ")


def listed(parts: Sequence[str], last: str) -> str:
    """``a, b and c``, where ``last`` is the word before the last one."""
    return f" {last} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def is_rate(estimate: Estimate) -> bool:
    return estimate.count is not None


def value(estimate: Estimate, share: bool = False) -> str:
    """The estimate as text. ``share``: write it as a percentage although it is a mean, not a count."""
    return percent(estimate.value) if share or is_rate(estimate) else number(estimate.value)


def interval(estimate: Estimate, share: bool = False) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return ""
    if share or is_rate(estimate):
        return f"[{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def written(estimate: Estimate, share: bool = False) -> str:
    """Value, interval and total of an estimate, in one line."""
    of = f"of\u00a0{estimate.total}" if share or is_rate(estimate) else ""
    parts = (value(estimate, share), interval(estimate, share), of)
    return " ".join(part for part in parts if part)


def points(difference: Estimate) -> str:
    """A difference of two rates, in percentage points."""
    if difference.value is None:
        return "–"
    bounds = (difference.low, difference.high)
    limits = "" if None in bounds else " [" + ", ".join(f"{100 * b:.0f}" for b in bounds if b is not None) + "]"
    return f"{100 * difference.value:.0f}\u00a0points{limits}".replace("-", "\u2212")


def difference(change: Change, unit: Unit) -> str:
    """The paired difference: percentage points for rates, a factor for perplexities (a difference of logarithms)."""
    if change.difference is None:
        return ""
    write = _WRITE[unit]
    limits = "" if change.low is None or change.high is None else f" [{write(change.low)}, {write(change.high)}]"
    return write(change.difference) + ("\u00a0points" if unit == "rate" else "") + limits


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.2g}"


def _signed(text: str) -> str:
    return "0" if float(text) == 0 else text.replace("-", "\u2212")


_WRITE: dict[Unit, Callable[[float], str]] = {
    "rate": lambda number: _signed(f"{100 * number:+.0f}"),
    "share": lambda number: _signed(f"{number:+.3g}"),
    "mean": lambda number: _signed(f"{number:+.3g}"),
    "perplexity": lambda number: f"×\u00a0{math.exp(number):.3g}",
}
