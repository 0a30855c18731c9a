"""A picture of the evaluated requests in the plane of two scores."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from pipeline.explain.directions_found import DirectionsFindings, Point
from pipeline.records import POOLS, Pool
from pipeline.report.knows import REQUESTS
from pipeline.report.plots import frame
from pipeline.report.svg import around, colour, marker, shape, tag
from pipeline.report.wording import number, words

SHOWN = {"refused": "declined", "complied": "complied with"}
_FAMILY = 3  # the marker of an attack's mean
_HOLLOW = 5  # markers from this number on are hollow


def _sign(pool: Pool, outcome: str) -> int:
    """The number of a marker: its shape says the pool, and it is hollow if the model complied."""
    return POOLS.index(pool) + (_HOLLOW if outcome == "complied" else 0)


def shown(found: DirectionsFindings) -> list[Point]:
    """The requests in the picture: without an attack, and declined or complied with."""
    return [p for p in found.points if p.attack == "direct" and p.outcome in SHOWN and p.y is not None]


def plane_legend(found: DirectionsFindings) -> Markup:
    kinds = {(p.pool, p.outcome) for p in shown(found)}
    names = [
        (_sign(pool, outcome), f"{REQUESTS[pool]} {said}")
        for pool in POOLS
        for outcome, said in SHOWN.items()
        if (pool, outcome) in kinds
    ]
    if any(family.attack != "direct" for family in found.families):
        names.append((_FAMILY, "mean of the harmful requests under one attack"))
    items = (
        tag("li", tag("svg", shape(i), class_=f"sign {colour(i)}", viewBox="-7 -7 14 14", aria_hidden="true"), name)
        for i, name in names
    )
    return tag("ul", *items, class_="legend")


def plane(found: DirectionsFindings) -> Markup:
    """Harmfulness score to the right, refusal score upwards. A dotted line is the threshold of the harmfulness score.
    Empty if there is no refusal direction."""
    points = shown(found)
    attacks = [(f.attack, f.x.value, f.y.value) for f in found.families if f.attack != "direct" and f.y is not None]
    means = [(name, x, y) for name, x, y in attacks if x is not None and y is not None]
    if not points:
        return Markup("")
    xs = around([p.x for p in points] + [x for _, x, _ in means] + [found.threshold])
    ys = around([p.y for p in points if p.y is not None] + [y for _, _, y in means])
    line = tag("line", x1=xs.at(found.threshold), x2=xs.at(found.threshold), y1="0", y2="100%", class_="path")
    signs = [marker(xs.at(p.x), ys.up(p.y or 0.0), _sign(p.pool, p.outcome), p.id) for p in points]
    signs += [marker(xs.at(x), ys.up(y), _FAMILY, f"mean under {words(name)}") for name, x, y in means]
    said = f"{len(points)} requests; {_said(points, found.threshold)}"
    return tag(
        "div",
        tag("p", "↑ refusal score", class_="axis-title"),
        tag("svg", frame(xs, ys, number), line, *signs, height=360, role="img", aria_label=said),
        tag("p", "harmfulness score →", class_="axis-title end"),
        class_="plot",
    )


def _said(points: Sequence[Point], threshold: float) -> str:
    parts = []
    for pool in POOLS:
        mine = [point for point in points if point.pool == pool]
        if mine:
            parts.append(f"{sum(p.x >= threshold for p in mine)} of {len(mine)} {REQUESTS[pool]} beyond the threshold")
    return ", ".join(parts)
