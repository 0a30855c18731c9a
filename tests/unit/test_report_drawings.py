"""Numbers in the report, in words and in drawings."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from markupsafe import Markup

from pipeline.evals.calibration import Bin
from pipeline.evals.results import Change, Estimate
from pipeline.report import plots, views, wording
from pipeline.report.svg import Axis, around, tag
from tests.report_data import HELD_OUT_START, make_rollout_history


def parse(drawing: Markup) -> ET.Element:
    return ET.fromstring(f"<div>{drawing}</div>")


# --- Numbers in words ------------------------------------------------------------------------------------------------


def test_estimates_are_percentages_only_when_they_were_counted():
    rate = Estimate(value=0.125, low=0.07, high=0.19, count=10, total=80)
    mean = Estimate(value=61.234, low=58.2, high=-0.5, total=80)
    assert wording.written(rate) == "12\u00a0% [7, 19] of\u00a080"
    assert wording.written(mean) == "61.2 [58.2, −0.5]"
    assert (
        wording.written(Estimate(value=0.555, low=0.5, high=0.6, total=9), share=True) == "56\u00a0% [50, 60] of\u00a09"
    )
    assert wording.written(Estimate(value=None)) == "–"


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("rate", "−20\u00a0points [−30, 0]"),
        ("mean", "−0.2 [−0.3, 0]"),
        ("perplexity", "×\u00a00.819 [×\u00a00.741, ×\u00a01]"),
    ],
)
def test_a_difference_has_its_sign_and_its_unit(unit, text):
    change = Change(measure="m", before="a", after="b", difference=-0.2, low=-0.3, high=0.0, verdict="better")
    assert wording.difference(change, unit) == text


# --- Drawings --------------------------------------------------------------------------------------------------------


def test_text_in_a_drawing_is_escaped():
    assert str(tag("title", "<b>&", x='"')) == '<title x="&#34;">&lt;b&gt;&amp;</title>'


def test_axis_places_values_in_percent_and_never_outside():
    axis = Axis(0, 4)
    assert [axis.at(v) for v in (-1, 0, 1, 4, 9)] == ["0.00%", "0.00%", "25.00%", "100.00%", "100.00%"]
    assert axis.up(1) == "75.00%"
    assert Axis(0, 1).ticks(5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(around(values).ticks(4) for values in ([], [3.0], [-1e-9, 1e12]))


def test_a_strip_shows_value_and_interval():
    strip = parse(plots.interval_strip(Estimate(value=0.5, low=0.25, high=0.75, count=1, total=2), 1))
    line = strip.find(".//line[@class='range m1']")
    assert (line.get("x1"), line.get("x2")) == ("25.00%", "75.00%")
    assert strip.find(".//svg/svg").get("x") == "50.00%"
    assert plots.interval_strip(Estimate(value=None), 0) == plots.interval_strip(None, 0) == ""


def test_rows_say_in_words_what_they_draw():
    rows = [("fraud & theft", [Estimate(value=0.5, low=0.2, high=0.8, count=1, total=2), None])]
    drawn = parse(plots.dot_rows(rows, ["base", "sft"], notes={"fraud & theft": "✓ better"}))
    assert drawn.find(".//svg[@role='img']").get("aria-label") == "fraud & theft: base 50\u00a0% [20, 80] of\u00a02"
    assert drawn.find(".//small").text == "✓ better"


def test_trade_off_leaves_out_what_was_not_measured():
    known, unknown = Estimate(value=0.2, low=0.1, high=0.3, count=2, total=10), Estimate(value=None)
    drawn = parse(plots.trade_off({"base": (known, unknown), "aligned": (known, known)}, "x", "y"))
    assert len(drawn.findall(".//svg[@class='at m1']")) == 1 and not drawn.findall(".//svg[@class='at m0']")
    assert plots.trade_off({"base": (unknown, unknown)}, "x", "y") == ""


def test_curves_find_loss_reward_and_kl_and_skip_what_is_no_number():
    history = [{"step": 1, "loss": 2.0, "rewards/chosen": 0.1, "kl": 0.0, "lr": 1}, {"step": 2, "loss": float("nan")}]
    history += [{"step": 3, "loss": 1.0, "rewards/chosen": 0.3, "kl": None}]
    found = {(stage, title): series for stage, title, series in views.curves({"align": history})}
    assert found == {
        ("align", "loss"): {"loss": [(1.0, 2.0), (3.0, 1.0)]},
        ("align", "reward"): {"rewards/chosen": [(1.0, 0.1), (3.0, 0.3)]},
    }
    points = parse(plots.curve(found["align", "loss"], "loss")).find(".//polyline").get("points")
    assert [pair.split(",")[0] for pair in points.split()] == ["0.00", "100.00"]


def test_long_curves_are_thinned_by_means():
    drawn = parse(plots.curve({"loss": [(float(i), float(i % 2)) for i in range(10_000)]}, "loss"))
    assert len(drawn.find(".//polyline").get("points").split()) <= 400


def test_the_line_of_an_estimate_lies_in_the_band_of_its_intervals():
    points = [(1.0, Estimate(value=0.5, low=0.4, high=0.6)), (2.0, Estimate(value=0.9, low=0.8, high=1.0))]
    drawn = parse(plots.estimates({"base": [*points, (3.0, Estimate(value=None))]}, "AUC", "layer"))
    line, band = (
        [tuple(map(float, point.split(","))) for point in drawn.find(f".//{name}").get("points").split()]
        for name in ("polyline", "polygon")
    )
    (x1, y1), (x2, y2) = line
    assert [x for x, _ in band] == [x1, x2, x2, x1] == [0, 100, 100, 0]
    high1, high2, low2, low1 = (y for _, y in band)  # y grows downwards
    assert high1 < y1 < low1 and high2 < y2 < low2


def test_rollouts_have_curves_of_their_own_and_no_number_is_drawn_twice():
    history = [HELD_OUT_START, *make_rollout_history(6)]
    found = {title: series for _, title, series in views.curves({"align": history})}
    assert {title: list(series) for title, series in found.items()} == {
        "score": ["rollouts", "held-out prompts"],
        "KL to the SFT model, nats per reply": ["rollouts", "held-out prompts"],
        "entropy, nats per token": ["rollouts"],
        "length of replies, tokens": ["rollouts"],
        "loss of the policy": ["policy"],
        "loss of the values": ["values"],
        "share of tokens clipped": ["policy", "values"],
        "approximate KL of an update, nats per token": ["policy"],
        "explained variance of the values": ["values"],
    }
    assert found["score"]["rollouts"] == [(row["step"], row["objective/scores"]) for row in history[1:]]
    assert found["score"]["held-out prompts"] == [
        (0.0, HELD_OUT_START["held_out/scores"]),
        *((row["step"], row["held_out/scores"]) for row in history if row["step"] in (3, 6)),
    ]
    assert found["loss of the policy"]["policy"] == [(row["step"], row["loss/policy_avg"]) for row in history[1:]]


def test_parts_of_a_score_are_drawn_where_there_are_several():
    row = {"objective/scores": 1.0, "rewards/short/mean": 0.4, "rewards/short/std": 9.0, "rewards/kind/mean": 0.6}
    found = {title: series for _, title, series in views.curves({"align": [row | {"step": n} for n in (1, 2)]})}
    assert found["parts of the score"] == {"short": [(1.0, 0.4), (2.0, 0.4)], "kind": [(1.0, 0.6), (2.0, 0.6)]}
    assert set(found) == {"score", "parts of the score"}


def test_a_reliable_model_lies_on_the_diagonal_and_dots_have_the_area_of_their_bin():
    few = Bin(low=0.5, high=0.6, count=4, predicted=0.55, label=0.55)
    many = Bin(low=0.7, high=0.8, count=16, predicted=0.75, label=0.5)
    drawn = parse(plots.reliability([few, many]))
    dots = drawn.findall(".//circle")
    assert [(dot.get("cx"), dot.get("cy")) for dot in dots] == [("10.00%", "90.00%"), ("50.00%", "100.00%")]
    assert float(dots[1].get("r")) == 2 * float(dots[0].get("r"))
    assert [text.text for text in drawn.findall(".//text[@class='named']")] == ["4", "16"]
    line = drawn.find(".//line[@class='path']")
    assert [line.get(end) for end in ("x1", "y1", "x2", "y2")] == ["0.00%", "100.00%", "100.00%", "0.00%"]
    label = drawn.find(".//svg[@role='img']").get("aria-label")
    assert "predicted 75\u00a0%, agreed 50\u00a0%, 16 pairs" in label
    assert plots.reliability([]) == ""


def test_a_label_below_one_half_has_its_place_and_the_diagonal_moves_with_the_axis():
    drawn = parse(plots.reliability([Bin(low=0.9, high=1.0, count=2, predicted=0.95, label=0.25)]))
    assert (drawn.find(".//circle").get("cx"), drawn.find(".//circle").get("cy")) == ("90.00%", "75.00%")
    assert drawn.find(".//line[@class='path']").get("y1") == "50.00%"


def test_histogram_counts_both_ends():
    label = parse(plots.histogram([0.0, 0.05, 0.5, 1.0], "labels")).find(".//svg").get("aria-label")
    assert label == "labels: 2 from 0.0 to 0.1, 1 from 0.5 to 0.6, 1 from 0.9 to 1.0"
    assert plots.histogram([], "labels") == ""
