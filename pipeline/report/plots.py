"""The plots of the report: pure functions from numbers to inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

from markupsafe import Markup

from pipeline.evals.calibration import Bin
from pipeline.evals.results import Estimate
from pipeline.report.svg import Axis, around, colour, join, marker, shape, tag
from pipeline.report.wording import number, percent, words, written

Points = Sequence[tuple[float, float]]
Estimates = Sequence[tuple[float, Estimate]]  # (place, estimate)
Bands = Mapping[str, Sequence[tuple[float, float, float]]]  # line → (place, low, high)
RATES = Axis()

_LANE = 13  # height of one model's line in a row, in pixels
_MAX_NAMED = 5  # with more models than this, only the legend names them
_MAX_POINTS = 400
_NUM_BINS = 10
_NUM_TICKS = 4
_MAX_RADIUS = 15


def legend(models: Sequence[str], shown: Container[str] | None = None) -> Markup:
    """The sign of each model, or of those that are shown. Each model has the same sign in all pictures."""
    signs = (
        tag("svg", shape(i), class_=f"sign {colour(i)}", viewBox="-7 -7 14 14", aria_hidden="true")
        for i in range(len(models))
    )
    items = (
        tag("li", sign, words(model))
        for sign, model in zip(signs, models, strict=True)
        if shown is None or model in shown
    )
    return tag("ul", *items, class_="legend")


def interval_strip(estimate: Estimate | None, index: int, axis: Axis = RATES) -> Markup:
    """One estimate on its axis, for a table cell that also has the number as text."""
    if estimate is None or estimate.value is None:
        return Markup("")
    line = tag("line", x1="0", x2="100%", y1=7, y2=7, class_="axis")
    return tag("svg", line, _estimate(estimate, 7, index, axis), class_="strip", height=14, aria_hidden="true")


def dot_rows(
    rows: Sequence[tuple[str, Sequence[Estimate | None]]],
    models: Sequence[str],
    axis: Axis | None = RATES,
    notes: Mapping[str, str] | None = None,
) -> Markup:
    """One row per name, with a marker and an interval per model. ``axis=None``: choose an axis that fits all values.

    ``notes``: name → a short text after it.
    """
    axis = axis or around(v for _, row in rows for e in row if e for v in (e.value, e.low, e.high) if v is not None)
    as_text = percent if axis == RATES else number
    height = _LANE * max((sum(e is not None for e in row) for _, row in rows), default=0) + 10
    beside = {name: tag("small", note) for name, note in (notes or {}).items()}
    drawn = [
        tag("div", tag("span", name, " ", beside.get(name, ""), class_="name"), _row(name, row, models, axis, height))
        for name, row in rows
    ]
    ticks = tag(
        "svg",
        *(tag("text", as_text(t), x=axis.at(t), y=13, text_anchor=_anchor(axis, t)) for t in axis.ticks(_NUM_TICKS)),
        height=18,
        aria_hidden="true",
    )
    return tag("div", *drawn, tag("div", tag("span", class_="name"), ticks), class_="dots")


def _row(name: str, row: Sequence[Estimate | None], models: Sequence[str], axis: Axis, height: int) -> Markup:
    said = "; ".join(f"{words(m)} {written(e)}" for m, e in zip(models, row, strict=True) if e is not None)
    present = [(index, e) for index, e in enumerate(row) if e is not None]
    top = (height - _LANE * len(present)) / 2
    drawn = (
        _estimate(e, top + _LANE * (lane + 0.5), index, axis, f"{words(models[index])}, {name}: {written(e)}")
        for lane, (index, e) in enumerate(present)
        if e.value is not None
    )
    return tag("svg", _grid(axis, _NUM_TICKS), *drawn, height=height, role="img", aria_label=f"{name}: {said}")


def trade_off(points: Mapping[str, tuple[Estimate, Estimate]], x_title: str, y_title: str) -> Markup:
    """Each model at (x, y) with both intervals as a cross. A thin line connects models in the order of training."""
    known = {m: (x, y) for m, (x, y) in points.items() if x.value is not None and y.value is not None}
    if not known:
        return Markup("")
    xs, ys = (_from_zero(pair[side] for pair in known.values()) for side in (0, 1))
    places = [(xs.at(x.value or 0.0), ys.up(y.value or 0.0)) for x, y in known.values()]
    path = [tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="path") for (x1, y1), (x2, y2) in pairwise(places)]
    crosses, signs = [], []
    for (model, (x, y)), (px, py) in zip(known.items(), places, strict=True):
        index = list(points).index(model)
        crosses += [
            tag("line", x1=xs.at(_low(x)), x2=xs.at(_high(x)), y1=py, y2=py, class_=f"range {colour(index)}"),
            tag("line", x1=px, x2=px, y1=ys.up(_low(y)), y2=ys.up(_high(y)), class_=f"range {colour(index)}"),
        ]
        signs.append(marker(px, py, index, f"{words(model)}: {x_title} {written(x)}; {y_title} {written(y)}"))
        if len(points) <= _MAX_NAMED:
            late = float(px.rstrip("%")) > 75
            signs.append(
                tag("text", words(model), x=px, y=py, dx=-10 if late else 10, dy=-9, class_="named",
                    text_anchor="end" if late else "start")
            )  # fmt: skip
    said = "; ".join(f"{words(m)}: {x_title} {written(x)}, {y_title} {written(y)}" for m, (x, y) in known.items())
    best = tag("text", "helpful and harmless", x=0, y="100%", dx=8, dy=-8, class_="best")
    return tag(
        "div",
        tag("p", f"↑ {y_title}", class_="axis-title"),
        tag("svg", frame(xs, ys, percent), best, *path, *crosses, *signs, height=320, role="img", aria_label=said),
        tag("p", f"{x_title} →", class_="axis-title end"),
        class_="plot",
    )


def estimates(
    series: Mapping[str, Estimates], label: str, along: str, say_x: Callable[[float], str] = number
) -> Markup:
    """``curve`` of estimates, each line in the band of its intervals."""
    known = {name: [(x, e) for x, e in points if e.value is not None] for name, points in series.items()}
    bands = {
        name: [(x, e.low, e.high) for x, e in points if e.low is not None and e.high is not None]
        for name, points in known.items()
    }
    return curve(
        {name: [(x, e.value or 0.0) for x, e in points] for name, points in known.items()}, label, along, bands, say_x
    )


def curve(
    series: Mapping[str, Points],
    label: str,
    along: str = "step",
    bands: Bands = MappingProxyType({}),
    say_x: Callable[[float], str] = number,
) -> Markup:
    """Lines over steps, or over what ``along`` names and ``say_x`` writes; they differ in colour and in dashes."""
    lines = {name: _thinned(points) for name, points in series.items() if len(points) > 1}
    if not lines:
        return Markup("")
    steps = [step for points in lines.values() for step, _ in points]
    edges = [edge for name in lines for _, *both in bands.get(name, ()) for edge in both]
    xs, ys = Axis(min(steps), max(steps)), around([*(v for points in lines.values() for _, v in points), *edges])
    drawn = [_band(bands.get(name, ()), xs, ys, index) for index, name in enumerate(lines)]
    drawn += [_polyline(points, xs, ys, index) for index, points in enumerate(lines.values())]
    said = "; ".join(
        f"{name} from {number(p[0][1])} to {number(p[-1][1])}, {along}s {say_x(p[0][0])} to {say_x(p[-1][0])}"
        for name, p in lines.items()
    )
    area = tag("svg", *drawn, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%")
    keys = (
        tag(
            "li",
            tag("svg", tag("line", x1=0, x2=22, y1=6, y2=6, class_=f"line l{i}"), class_="key", aria_hidden="true"),
            name,
        )
        for i, name in enumerate(lines)
    )
    return tag(
        "div",
        tag("svg", frame(xs, ys, number, say_x=say_x), area, height=170, role="img", aria_label=f"{label}: {said}"),
        tag("p", f"{along} →", class_="axis-title end"),
        tag("ul", *keys, class_="legend") if len(lines) > 1 else "",
        class_="plot",
    )


def histogram(shares: Sequence[float], label: str) -> Markup:
    """A histogram of numbers between 0 and 1, in ten bins."""
    if not shares:
        return Markup("")
    counts = [0] * _NUM_BINS
    for share in shares:
        counts[min(int(share * _NUM_BINS), _NUM_BINS - 1)] += 1
    top, width = max(counts), 100 / _NUM_BINS
    bars = []
    for i, n in enumerate(counts):
        x, y = i * width, f"{100 - 86 * n / top:.1f}%"
        height = f"{86 * n / top:.1f}%"
        bars.append(tag("rect", x=f"{x + 0.6:.1f}%", width=f"{width - 1.2:.1f}%", y=y, height=height))
        if n:
            bars.append(tag("text", str(n), x=f"{x + width / 2:.1f}%", y=y, dy=-5, text_anchor="middle"))
    ends = (
        tag("text", text, x=x, y="100%", dy=16, text_anchor=anchor)
        for text, x, anchor in (
            ("0: B is better", "0%", "start"),
            ("½", "50%", "middle"),
            ("1: A is better", "100%", "end"),
        )
    )
    base = tag("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis")
    said = ", ".join(f"{n} from {i / _NUM_BINS:.1f} to {(i + 1) / _NUM_BINS:.1f}" for i, n in enumerate(counts) if n)
    drawing = tag("svg", *bars, base, *ends, height=150, role="img", aria_label=f"{label}: {said}", class_="bars")
    return tag("div", drawing, class_="plot low")


def reliability(bins: Sequence[Bin]) -> Markup:
    """A reliability diagram: one dot per bin, with an area proportional to its count. The diagonal is calibrated."""
    if not bins:
        return Markup("")
    most = max(one.count for one in bins)
    xs, ys = Axis(0.5, 1.0), Axis(0.5 if min(one.label for one in bins) >= 0.5 else 0.0, 1.0)
    diagonal = tag("line", x1=xs.at(0.5), y1=ys.up(0.5), x2=xs.at(1.0), y2=ys.up(1.0), class_="path")
    dots = (_bin(one, xs.at(one.predicted), ys.up(one.label), math.sqrt(one.count / most)) for one in bins)
    said = "; ".join(map(_said_of_bin, bins))
    return tag(
        "div",
        tag("p", "↑ how often the label agreed", class_="axis-title"),
        tag(
            "svg",
            frame(xs, ys, percent, most=5),
            diagonal,
            *dots,
            height=260,
            role="img",
            aria_label=f"Reliability: {said}",
        ),
        tag("p", "predicted probability →", class_="axis-title end"),
        class_="plot",
    )


def _bin(one: Bin, x: str, y: str, share_of_radius: float) -> Markup:
    """A dot with its number of pairs above it, or below it near the upper edge."""
    radius = max(3.0, _MAX_RADIUS * share_of_radius)
    dot = tag("circle", tag("title", _said_of_bin(one)), cx=x, cy=y, r=f"{radius:.1f}", class_="bin")
    beside = radius + 13 if one.label > 0.9 else -radius - 4
    return dot + tag("text", str(one.count), x=x, y=y, dy=f"{beside:.1f}", text_anchor="middle", class_="named")


def _said_of_bin(one: Bin) -> str:
    return f"predicted {percent(one.predicted)}, agreed {percent(one.label)}, {one.count} pairs"


def group_strip(rates: Mapping[str, Estimate]) -> Markup:
    """The rates of an attribute's groups on one axis, with a line from the lowest to the highest."""
    known = {group: e for group, e in rates.items() if e.value is not None}
    values = [e.value or 0.0 for e in known.values()]
    if not values:
        return Markup("")
    span = tag("line", x1=RATES.at(min(values)), x2=RATES.at(max(values)), y1=9, y2=9, class_="range")
    ticks = (
        tag("line", tag("title", f"{group}: {written(e)}"), x1=RATES.at(v), x2=RATES.at(v), y1=3, y2=15, class_="tick")
        for (group, e), v in zip(known.items(), values, strict=True)
    )
    axis = tag("line", x1="0", x2="100%", y1=9, y2=9, class_="axis")
    return tag("svg", axis, span, *ticks, class_="strip", height=18, aria_hidden="true")


# --- Parts ---------------------------------------------------------------------------------------------------------


def _estimate(estimate: Estimate, y: float, index: int, axis: Axis, hint: str = "") -> Markup:
    line = tag(
        "line", x1=axis.at(_low(estimate)), x2=axis.at(_high(estimate)), y1=y, y2=y, class_=f"range {colour(index)}"
    )
    return line + marker(axis.at(estimate.value or 0.0), y, index, hint)


def _low(estimate: Estimate) -> float:
    return next(bound for bound in (estimate.low, estimate.value, 0.0) if bound is not None)


def _high(estimate: Estimate) -> float:
    return next(bound for bound in (estimate.high, estimate.value, 0.0) if bound is not None)


def _from_zero(estimates: Iterable[Estimate]) -> Axis:
    """An axis from zero to the first round limit above all intervals, so that small rates fill the plot."""
    top = max(_high(estimate) for estimate in estimates)
    return Axis(0.0, next(limit for limit in (0.1, 0.25, 0.5, 1.0) if top <= limit or limit == 1.0))


def _grid(axis: Axis, most: int) -> Markup:
    return join(tag("line", x1=axis.at(t), x2=axis.at(t), y1="0", y2="100%", class_="grid") for t in axis.ticks(most))


def frame(
    xs: Axis,
    ys: Axis,
    say: Callable[[float], str],
    most: int = _NUM_TICKS,
    say_x: Callable[[float], str] | None = None,
) -> Markup:
    """Grid and tick labels. The labels are in the margin of ``.plot``. ``say_x``: how x is written, if not like y."""
    across = join(
        tag("line", x1="0", x2="100%", y1=ys.up(t), y2=ys.up(t), class_="grid")
        + tag("text", say(t), x="0", y=ys.up(t), dx=-8, dy=4, text_anchor="end")
        for t in ys.ticks(most)
    )
    along = join(
        tag("text", (say_x or say)(t), x=xs.at(t), y="100%", dy=17, text_anchor=_anchor(xs, t)) for t in xs.ticks(most)
    )
    return _grid(xs, most) + across + along


def _anchor(axis: Axis, value: float) -> str:
    """The text anchor that keeps labels at the ends of an axis inside the plot."""
    place = float(axis.at(value).rstrip("%"))
    return "start" if place < 2 else "end" if place > 98 else "middle"


def _polyline(points: Points, xs: Axis, ys: Axis, index: int) -> Markup:
    written_points = " ".join(f"{xs.at(x)[:-1]},{ys.up(y)[:-1]}" for x, y in points)
    return tag("polyline", points=written_points, class_=f"line l{index}", vector_effect="non-scaling-stroke")


def _band(edges: Sequence[tuple[float, float, float]], xs: Axis, ys: Axis, index: int) -> Markup:
    """The area between the lows and the highs."""
    around_it = [(x, high) for x, _, high in edges] + [(x, low) for x, low, _ in reversed(edges)]
    points = " ".join(f"{xs.at(x)[:-1]},{ys.up(y)[:-1]}" for x, y in around_it)
    return tag("polygon", points=points, class_=f"band b{index}") if edges else Markup("")


def _thinned(points: Points) -> Points:
    """At most ``_MAX_POINTS`` points: means of neighbours if there are more."""
    size = -(-len(points) // _MAX_POINTS)
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets]
