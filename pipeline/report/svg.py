"""Make SVG elements as escaped text. Positions along an axis are in percent, sizes in pixels.

So a plot fills the available width, and its text stays readable on a phone. Colours are CSS variables. Models differ in
shape as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

_SHAPES = (  # around the origin, about 9 px across
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0-4.5 0Z",  # circle
    "M-4-4H4V4H-4Z",  # square
    "M0-5.6L5.6 0L0 5.6L-5.6 0Z",  # diamond
    "M0-5L5 4H-5Z",  # triangle
    "M0 5L5-4H-5Z",  # triangle on its tip
)


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """An element; ``class_`` is written ``class``, ``stroke_width`` ``stroke-width``, and None is left out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, join(children))


def join(parts: Iterable[str | Markup]) -> Markup:
    return Markup("").join(parts)


def colour(index: int) -> str:
    """The CSS class for a model's colour. Shapes repeat after five models, so the next five are hollow."""
    return f"m{index % len(_SHAPES)}" + (" hollow" if index // len(_SHAPES) % 2 else "")


def shape(index: int) -> Markup:
    return tag("path", d=_SHAPES[index % len(_SHAPES)], class_="marker")


def marker(x: str, y: str | float, index: int, hint: str = "") -> Markup:
    """A model's marker at a position. It is a nested ``svg``, because a path can't be moved in percent."""
    title = tag("title", hint) if hint else ""
    return tag("svg", title, shape(index), x=x, y=y, class_=f"at {colour(index)}")


@dataclass(frozen=True)
class Axis:
    low: float = 0.0
    high: float = 1.0

    def at(self, value: float) -> str:
        """The position of a value in percent of the axis, clamped to its ends."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"

    def up(self, value: float) -> str:
        """The same for a y axis, which grows upwards."""
        return self.at(self.low + self.high - value)

    def ticks(self, most: int) -> list[float]:
        """Round values between the ends, about ``most`` of them."""
        rough = (self.high - self.low) / most
        if rough <= 0 or not math.isfinite(rough):
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def around(values: Iterable[float], zero: bool = False) -> Axis:
    """An axis that fits all values, with a margin at both ends."""
    known = [*values, *([0.0] if zero else [])]
    if not known:
        return Axis()
    low, high = min(known), max(known)
    air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Axis(low - air, high + air)
