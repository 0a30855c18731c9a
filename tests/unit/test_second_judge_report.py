"""What the report says and draws of the second judge."""

from __future__ import annotations

from statistics import fmean

import pytest

from pipeline.evals.statistics import paired_difference, wilson
from pipeline.report import rewards, second_judge
from pipeline.report.build import Report
from pipeline.report.render import render
from pipeline.report.tables import tables_of
from tests.report_data import HELD_OUT_BEFORE, make_report, with_metrics

FELL = "at step 9 the reward rises while the second judge falls: since step 3 …"


def judged(overoptimised: str | None, stops: bool = True, **metrics) -> Report:
    small = make_report(num_cases=3, num_exchanges=1)
    judge = {"name": "patterns-2", "best_step": 3, "stops": stops, "overoptimised": overoptimised}
    return with_metrics(small, "align", second_judge=judge, **metrics)


def test_the_reward_and_the_second_judge_are_drawn_over_the_kl():
    report = make_report(num_cases=3, num_exchanges=1)
    [course] = second_judge.courses(report)
    assert [point.distance for point in course.points] == pytest.approx(
        [(0.45 * step) ** 0.5 for step in range(0, 13, 3)]
    )
    assert course.points[2].right == wilson(15, 23), "a reply that can't be read is in no share"
    low, high = paired_difference([0.0] * 24, HELD_OUT_BEFORE)[1:]
    first = course.points[0].reward
    assert (first.low, first.high) == (low, high) and first.value == pytest.approx(fmean(HELD_OUT_BEFORE))
    assert course.said == (
        "From step 0 to step 12 the mean reward, which training raises, went from 0.275 to 1.48. The share of replies "
        "that the second judge (patterns-2) calls right went from 75\xa0% to 42\xa0%. There is no evidence that the "
        "second judge fell while the reward rose."
    )
    drawn = second_judge.picture(course)
    assert "step 9, kept" in drawn and drawn.count('class="at m2"') == drawn.count('class="at m1"') == 5
    assert "step 3: √KL 1.16, replies that the second judge calls right 83\xa0% [64, 93] of\xa024" in drawn
    html, markdown = render("report.html.j2", report), render("report.md.j2", report)
    assert drawn in html and course.said in html and course.said in markdown
    assert "#second-judge-align" not in html, "nothing for the first page"
    assert "| 9, kept | 4.05 | 1.18 [1.1, 1.26] | 50 % [31, 69] (24) |" in markdown
    rows = tables_of(report)["second_judge"]
    assert [row["step"] for row in rows if row["quantity"] == "right"] == [0, 3, 6, 9, 12]
    assert [row["step"] for row in rows if row["kept"]] == [9, 9]


def test_a_second_judge_that_fell_is_a_warning_and_says_which_step_is_kept():
    stopped = judged(FELL, best_step=3, stopped=f"{FELL}; the policy of step 3 is kept")
    [course] = second_judge.courses(stopped)
    assert course.said == (
        "At step 9 the reward rises while the second judge falls: since step 3 …. So the policy learnt to please the "
        "reward, and by this judge its replies got worse. Training was stopped there, and the policy of step 3 is kept."
    )
    html = render("report.html.j2", stopped)
    assert f'class="warning"><span aria-hidden="true">⚠</span> {course.said}' in html
    assert f'{course.said} <a href="#second-judge-align">More</a>' in html and 'id="second-judge-align"' in html
    assert "The kept step is the best one by the second judge. The scores here" in html
    at_first = rewards.held_out(judged(FELL, best_step=0))
    assert rewards.held_out_said(stopped, at_first).startswith(
        "No later step was better by the second judge than step 0."
    )
    went_on = judged(FELL, stops=False)
    assert "Training went on all the same, and the policy of step 9 is kept." in second_judge.courses(went_on)[0].said
    assert "The kept step has the highest score after penalties" in render("report.html.j2", went_on)
