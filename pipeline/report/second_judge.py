"""The report's part on the second judge of PPO, RLOO and GRPO: does it fall while the reward rises?

The picture follows Gao et al. 2023 (arXiv 2210.10760, figure 1): both over the square root of the KL to the SFT model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from pipeline.evals.results import Estimate
from pipeline.evals.statistics import bootstrap, resampled, wilson
from pipeline.records import HeldOutPoint
from pipeline.report.build import Report
from pipeline.report.plots import frame
from pipeline.report.svg import Axis, around, colour, marker, tag
from pipeline.report.wording import number, percent, words, written

_MAX_NAMED = 8  # with more points than this, only the first, the kept and the last one are named
_TITLES = ("mean reward", "replies that the second judge calls right")


@dataclass(frozen=True, kw_only=True)
class Point:
    """The policy of one step on the held-out prompts."""

    step: int
    kl: float
    """To the SFT model, in nats per reply."""
    reward: Estimate
    right: Estimate

    @property
    def distance(self) -> float:
        """√KL; an estimated KL may be a little below zero."""
        return math.sqrt(max(self.kl, 0.0))


@dataclass(frozen=True, kw_only=True)
class Course:
    """The reward and the second judge in the course of one training."""

    task: str
    judge: str
    points: list[Point]
    """In the order of training."""
    kept_step: int
    overoptimised: str
    """The clause that says where the second judge fell while the reward rose; empty if it did not."""
    stops: bool
    """Training stops where the second judge falls (``align.stop_on_second_judge``)."""

    @property
    def title(self) -> str:
        return f"{words(self.task).capitalize()}: the reward beside a second judge"

    @property
    def said(self) -> str:
        """What the picture shows, for somebody who trains no models."""
        first, last = self.points[0], self.points[-1]
        numbers = (
            f"From step {first.step} to step {last.step} the mean reward, which training raises, went from "
            f"{number(first.reward.value)} to {number(last.reward.value)}. The share of replies that the second judge "
            f"({self.judge}) calls right went from {percent(first.right.value)} to {percent(last.right.value)}."
        )
        if not self.overoptimised:
            return f"{numbers} There is no evidence that the second judge fell while the reward rose."
        end = "Training was stopped there" if self.stops else "Training went on all the same"
        return (
            f"{self.overoptimised[0].upper()}{self.overoptimised[1:]}. So the policy learnt to please the reward, and "
            f"by this judge its replies got worse. {end}, and the policy of step {self.kept_step} is kept."
        )


def courses(report: Report) -> list[Course]:
    """One for each round of PPO, RLOO or GRPO; empty for other methods."""
    found = []
    for task, points in report.held_out.items():
        manifest = report.manifests[task]
        judge = manifest.metrics["second_judge"]
        course = Course(
            task=task,
            judge=judge["name"],
            points=[_point(one, report.confidence) for one in points],
            kept_step=manifest.metrics["best_step"],
            overoptimised=judge["overoptimised"] or "",
            stops=judge["stops"],
        )
        found.append(course)
    return found


def _point(one: HeldOutPoint, confidence: float) -> Point:
    known = [right for right in one.right if right is not None]
    return Point(
        step=one.step,
        kl=one.kl,
        reward=resampled(bootstrap(one.rewards, confidence=confidence), len(one.rewards)),
        right=wilson(int(sum(known)), len(known), confidence),
    )


# --- The picture ---------------------------------------------------------------------------------------------------


def picture(course: Course) -> Markup:
    """Two plots with one axis of √KL: the reward above, and the second judge below."""
    xs = Axis(0.0, 1.08 * max(point.distance for point in course.points) or 1.0)
    rewards = [point.reward for point in course.points]
    heights = around(v for e in rewards for v in (e.value, e.low, e.high) if v is not None)
    return tag(
        "div",
        tag("p", f"↑ {_TITLES[0]}", class_="axis-title"),
        _panel(course, rewards, xs, heights, number, 0),
        tag("p", f"↑ {_TITLES[1]}", class_="axis-title"),
        _panel(course, [point.right for point in course.points], xs, Axis(), percent, 1),
        tag("p", "√KL to the SFT model, KL in nats per reply →", class_="axis-title end"),
        class_="plot",
    )


def _panel(
    course: Course, estimates: Sequence[Estimate], xs: Axis, ys: Axis, say: Callable[[float], str], which: int
) -> Markup:
    index = 2 - which  # blue above, orange below
    places = [
        (xs.at(point.distance), ys.up(estimate.value or 0.0))
        for point, estimate in zip(course.points, estimates, strict=True)
    ]
    drawn = [tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="path") for (x1, y1), (x2, y2) in pairwise(places)]
    said = []
    for point, estimate, (x, y) in zip(course.points, estimates, places, strict=True):
        hint = f"step {point.step}: √KL {number(point.distance)}, {_TITLES[which]} {written(estimate)}"
        said.append(hint)
        if estimate.low is not None and estimate.high is not None:
            low, high = ys.up(estimate.low), ys.up(estimate.high)
            drawn.append(tag("line", x1=x, x2=x, y1=low, y2=high, class_=f"range {colour(index)}"))
        drawn.append(marker(x, y, index, hint))
        if name := _name(course, point):
            late = float(x.rstrip("%")) > 75
            side = {"dx": -8, "text_anchor": "end"} if late else {"dx": 8, "text_anchor": "start"}
            drawn.append(tag("text", name, x=x, y=y, dy=-9, class_="named", **side))
    label = f"{_TITLES[which].capitalize()} over √KL: {'; '.join(said)}"
    return tag("svg", frame(xs, ys, say, say_x=number), *drawn, height=170, role="img", aria_label=label)


def _name(course: Course, point: Point) -> str:
    kept = point.step == course.kept_step
    ends = point in (course.points[0], course.points[-1])
    named = kept or ends or len(course.points) <= _MAX_NAMED
    return f"step {point.step}{', kept' if kept else ''}" if named else ""


# --- Tables --------------------------------------------------------------------------------------------------------


def rows(course: Course) -> list[dict[str, Any]]:
    """The points for a table that people read."""
    return [
        {
            "step": f"{point.step}{', kept' if point.step == course.kept_step else ''}",
            "KL, nats per reply": point.kl,
            _TITLES[0]: point.reward,
            _TITLES[1]: point.right,
        }
        for point in course.points
    ]


def second_judge_tables(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Table name → rows, for CSV and JSON; empty for other methods."""
    return {
        "second_judge": [
            {"task": course.task, "step": point.step, "kl": point.kl, "quantity": quantity, "judge": judge}
            | estimate.model_dump()
            | {"kept": point.step == course.kept_step}
            for course in courses(report)
            for point in course.points
            for quantity, judge, estimate in (("reward", "", point.reward), ("right", course.judge, point.right))
        ]
    }
