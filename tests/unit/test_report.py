from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import Markup

from pipeline.chain.config import ModelConfig
from pipeline.evals.calibration import Bin
from pipeline.evals.results import Change, Estimate, Results
from pipeline.evals.statistics import paired_difference, wilson
from pipeline.records import Message
from pipeline.report import plots, rewards, views, wording
from pipeline.report import render as render_module
from pipeline.report.build import Report, build_report, headline
from pipeline.report.diff import word_diff
from pipeline.report.explorer import Texts, conversation, explorer_data, is_good
from pipeline.report.knows import conclusion
from pipeline.report.render import json_script, render
from pipeline.report.svg import Axis, around, tag
from pipeline.report.tables import tables_of
from pipeline.report.write import write_report
from tests.report_data import (
    CONSTITUTION,
    HELD_OUT_BEFORE,
    HELD_OUT_START,
    empty_report,
    make_case,
    make_report,
    make_rollout_history,
    make_verdict,
    write_stages,
)

NASTY = (
    "</script><script>alert(1)</script><!-- <b>bold</b> \u202eright to left\u202c مرحبا 👩‍👩‍👧 "
    + "a" * 300
    + "\u2028\x00"
)


def parse(drawing: Markup) -> ET.Element:
    return ET.fromstring(f"<div>{drawing}</div>")


def page_data(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S).group(1))


# --- Diff ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("", "a b"),
        ("a b", ""),
        ("the same words", "the same words"),
        ("Take the first step now.", "Take the last step now!"),
        ("I won't go.\n\nNever.", "I will go.\n\nNever, no."),
        (NASTY, "something else entirely " + NASTY[:40]),
    ],
)
def test_a_diff_joins_back_to_both_texts(before: str, after: str):
    pieces = word_diff(before, after)
    assert "".join(piece for sign, piece in pieces if sign != "+") == before
    assert "".join(piece for sign, piece in pieces if sign != "-") == after
    assert all(piece for _, piece in pieces)


def test_a_diff_keeps_what_stayed_and_marks_whole_words():
    assert word_diff("Open it with the small key today.", "Open it with the large key today.") == [
        ("=", "Open it with the "),
        ("-", "small"),
        ("+", "large"),
        ("=", " key today."),
    ]


def test_single_words_that_happen_to_be_equal_do_not_cut_a_rewritten_sentence():
    signs = [sign for sign, _ in word_diff("get in by the back door at night", "ask the owner for a key at reception")]
    assert signs == ["-", "+"]


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


# --- Rewards ---------------------------------------------------------------------------------------------------------


def with_metrics(report: Report, stage: str, **metrics) -> Report:
    """The report, with other numbers in a stage's manifest."""
    manifest = report.manifests[stage]
    changed = manifest.model_copy(update={"metrics": manifest.metrics | metrics})
    return replace(report, manifests=report.manifests | {stage: changed})


def with_scores(before: list[float], best: list[float], **metrics) -> Report:
    small = make_report(num_cases=3, num_exchanges=1)
    return with_metrics(small, "align", held_out_scores={"0": before, "best": best}, **metrics)


@pytest.mark.parametrize(
    ("accuracy", "said", "warned"),
    [
        (wilson(10, 15), "includes one half, so there is no evidence that it is better than chance", True),
        (wilson(40, 50), "of\u00a050 held-out pairs; this is more often than by chance", False),
        (wilson(5, 50), "this is less often than by chance", True),
        (Estimate(value=0.5, low=0.3, high=0.7, total=8), "50\u00a0% [30, 70] of\u00a08 held-out pairs", True),
        (Estimate(value=None), "the reward model's accuracy is unknown", True),
    ],
)
def test_a_reward_model_that_may_be_chance_is_called_so(accuracy: Estimate, said: str, warned: bool):
    report = with_metrics(make_report(num_cases=3, num_exchanges=1), "reward", accuracy=accuracy.model_dump())
    sentences = rewards.reward_model(report).said
    assert said in sentences[0]
    assert ("better than chance" in sentences[0]) == (accuracy.low is not None and accuracy.low < 0.5 < accuracy.high)
    section = re.search(r'<section id="reward".*?</section>', render("report.html.j2", report), re.S).group()
    assert ('class="warning"' in section) == warned
    assert said.replace("'", "&#39;") in section and said in render("report.md.j2", report)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.60, 0.68, "one half has a loss of 0.693; its loss is below that."),
        (0.60, 0.70, "one half has a loss of 0.693, which the interval includes."),
        (
            0.70,
            0.80,
            "one half has a loss of 0.693; its loss is above that, so it is worse than a constant prediction.",
        ),
        (None, None, "one half has a loss of 0.693."),
    ],
)
def test_the_loss_stands_between_what_is_possible_and_one_half(low: float | None, high: float | None, said: str):
    loss = Estimate(value=0.65, low=low, high=high, total=20).model_dump()
    report = with_metrics(
        make_report(num_cases=3, num_exchanges=1), "reward", loss_held_out=loss, calibration_error=0.1
    )
    sentences = rewards.reward_model(report).said
    assert sentences[2].endswith(said) and sentences[2].startswith("Its loss on them is 0.65")
    assert "error is 0.1;" in sentences[3]


def test_accuracy_stands_beside_the_longer_reply_and_by_part():
    report = make_report(num_cases=3, num_exchanges=1)
    metrics = report.manifests["reward"].metrics
    model = rewards.reward_model(report)
    assert [name for name, _ in model.rows] == [
        "all pairs",
        *("harmlessness", "helpfulness", "small margin", "middle margin", "large margin"),
        *("longer preferred", "shorter preferred"),
    ]
    assert model.rows[0][1] == [Estimate(**metrics["accuracy"]), Estimate(**metrics["accuracy_of_longer_reply"])]
    assert model.rows[5] == ("large margin", [Estimate(**metrics["accuracy_by_margin"]["large"]), None])
    assert model.num_pairs["harmlessness"] == "20 pairs"
    html = render("report.html.j2", report)
    assert 'aria-label="Reliability: predicted' in html and 'aria-label="large margin: reward model' in html
    assert "80 harmlessness and 160 helpfulness pairs" in html and 'href="#reward"' in html


def test_held_out_prompts_are_compared_in_pairs_at_the_step_that_was_kept():
    report = make_report(num_cases=3, num_exchanges=1)
    found = rewards.held_out(report)
    best = report.manifests["align"].metrics["held_out_scores"]["best"]
    change = found.change
    assert (change.difference, change.low, change.high) == paired_difference(HELD_OUT_BEFORE, best)
    assert change.difference == pytest.approx(found.after - found.before) == pytest.approx(0.3833, abs=1e-3)
    assert (found.num_prompts, found.best_step, found.num_steps) == (24, 9, 12)
    assert (found.kl, found.max_kl) == (0.45 * 9, 20.0)
    html, markdown = render("report.html.j2", report), render("report.md.j2", report)
    assert "Step 9 of 12, kept" in html and "step 9 of 12, kept" in markdown
    assert "<td>4.05 (bound 20)</td>" in html and "| 4.05 (bound 20) |" in markdown
    assert "Training rolled back once to a policy within its bounds, and completed all steps." in html
    no_bound = report.manifests["align"].model_copy(update={"fields": {"config": {"method": "ppo"}}})
    report.manifests["align"] = no_bound
    assert rewards.held_out(report).max_kl is None and "<td>4.05</td>" in render("report.html.j2", report)


@pytest.mark.parametrize(
    ("before", "best", "said"),
    [
        (
            [0.0] * 8,
            [0.5, 1.0] * 4,
            "The interval excludes zero: the kept step scores higher on these prompts",
        ),
        ([0.5, 1.0] * 4, [0.0] * 8, "The interval excludes zero: the kept step scores lower on these prompts"),
        ([0.0] * 8, [-1.0, 1.0] * 4, "The interval includes zero: there is no evidence that the score"),
        ([0.0] * 3, [1.0] * 3, "There are too few prompts for an interval"),
    ],
)
def test_what_held_out_prompts_bear_is_said(before: list[float], best: list[float], said: str):
    report = with_scores(before, best)
    found = rewards.held_out(report)
    assert rewards.held_out_said(report, found).startswith(said)
    assert said in render("report.html.j2", report)


def test_a_run_that_kept_its_first_step_or_was_stopped_says_so():
    report = with_scores(
        [0.1] * 8,
        [0.1] * 8,
        best_step=0,
        num_rollbacks=2,
        stopped="KL is 30; stopped at step 4",
        num_unreadable_rewards=3,
    )
    found = rewards.held_out(report)
    assert rewards.held_out_said(report, found).startswith("No later step was better than step 0.")
    assert found.kl == 0.0
    assert found.course == (
        "Training rolled back 2 times to a policy within its bounds, and was stopped: KL is 30; stopped at step 4."
        " No answer of the constitution's judge could be read on 3 replies in training, so their reward from it is 0."
    )


def test_the_claim_is_left_to_the_test_split():
    report = make_report(num_cases=60, num_exchanges=1)
    said = rewards.held_out_said(report, rewards.held_out(report))
    assert (
        f"“Reward” on the test split: {report.change('reward', 'sft', 'aligned')}, aligned compared with SFT." in said
    )
    report.results.changes[:] = [change for change in report.results.changes if change.measure != "reward"]
    said = rewards.held_out_said(report, rewards.held_out(report))
    assert "“Reward”" not in said and "see the measures on the test split" in said


def test_a_run_on_pairs_has_nothing_of_rewards():
    report = make_report(num_cases=3, num_exchanges=1, method="dpo")
    assert rewards.reward_model(report) is None and rewards.held_out(report) is None
    assert not any(
        tables_of(report).get(name)
        for name in ("reward_model", "reward_reliability", "held_out_prompts", "second_judge")
    )
    for template in ("report.html.j2", "report.md.j2"):
        text = render(template, report)
        assert "held out" not in text.lower() and 'id="reward"' not in text and "scores.jsonl" not in text
    assert "align: reward" in render("report.html.j2", report)


def test_the_labels_have_a_card_with_what_turns_them():
    report = make_report(num_cases=3, num_exchanges=1)
    sentence = (
        "30 of 36 labels are an AI&#39;s judgement; of these, 4\xa0% turn with the principle&#39;s words, "
        "0\xa0% with the order of the replies, 96\xa0% with the pool (the file) of the prompt and "
        "12\xa0% with the length of the replies (estimated from 28 of them): the file in which the prompt stands "
        "decides, not the words of the constitution. 6 of 36 labels are written in the constitution."
    )
    html, markdown, card = (render(name, report) for name in ("report.html.j2", "report.md.j2", "card.md.j2"))
    assert f'<p class="warning"><span aria-hidden="true">⚠</span> {sentence}</p>' in html
    checked = "agreed with people on 60\xa0% [47, 71] of 60 shipped pairs (harmless 75\xa0%, helpful 60\xa0%,"
    assert checked in html and checked in markdown and "So it may be guessing about such pairs." in html
    assert "96\xa0% of 28; should be: none" in html and 'href="#labels"' in html
    plain = sentence.replace("&#39;", "'")
    assert plain in markdown and plain in card
    assert "| the pool (the file) of the prompt | 96 % [82, 99] (28) | none | A harmful request" in markdown
    assert "Can't be read then, and don't count: 1. Left out, because nothing can be cut: 2." in markdown
    rows = tables_of(report)["labels"]
    assert [(row["name"], row["count"], row["total"]) for row in rows] == [
        ("ai", 30, 36), ("constitution", 6, 36), ("words", 1, 28), ("order", 0, 28), ("pool", 27, 28),
        ("length", 3, 25), ("all", 36, 60), ("harmless", 12, 16), ("helpful", 9, 15), ("honest", 7, 14),
        ("look_alike", 8, 15)
    ]  # fmt: skip
    assert rows[5]["num_not_changed"] == 2 and len({frozenset(row) for row in rows}) == 1


def test_a_run_that_did_not_measure_its_labels_still_has_a_report():
    report = make_report(num_cases=3, num_exchanges=1)
    of_before = report.manifests["preferences"].model_copy(update={"metrics": {"num_pairs": 36}})
    report = replace(report, manifests={**report.manifests, "preferences": of_before})
    assert "labels" not in tables_of(report)
    for template in ("report.html.j2", "report.md.j2", "card.md.j2"):
        text = render(template, report)
        assert "are made of" not in text and "#labels" not in text


def test_lineage_names_the_folders_that_are_there():
    report = make_report(num_cases=3, num_exchanges=1)
    html = render("report.html.j2", report)
    assert "4-preferences/preferences.jsonl" in html
    assert "5-reward/rows.jsonl" in html and "5-reward/scores.jsonl" in html
    card = render("card.md.j2", report)
    assert "supervised fine-tuning, AI feedback, a reward model and PPO" in card
    gone = ("preferences", "reward")
    on_functions = replace(
        report,
        preferences=[],
        manifests={name: manifest for name, manifest in report.manifests.items() if name not in gone},
        folders={name: folder for name, folder in report.folders.items() if name not in gone},
        histories={name: history for name, history in report.histories.items() if name not in gone},
    )
    html = render("report.html.j2", on_functions)
    assert "preferences.jsonl" not in html and "scores.jsonl" not in html and "3-sft/rows.jsonl" in html
    assert "Held-out prompts, before and after" in html and "Labels: distribution" not in html
    assert "Held-out prompts, before and after" in render("report.md.j2", on_functions)
    assert "supervised fine-tuning and PPO" in render("card.md.j2", on_functions)


def test_a_report_is_built_from_the_reward_stage_too(tmp_path: Path):
    made = make_report(num_cases=6, num_exchanges=2)
    report = build_report(
        write_stages(made, tmp_path / "run"),
        model=ModelConfig(name="m", path="embedded"),
        guidelines=None,
        preset="none",
        deviations=[],
        constitution=CONSTITUTION,
    )
    assert report.held_out == made.held_out and len(report.held_out["align"]) == 5
    assert report.histories == made.histories and list(report.histories) == ["sft", "reward", "align"]
    (tmp_path / "out").mkdir()
    write_report(report, tmp_path / "out")
    tables = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert {"reward_model.csv", "reward_reliability.json", "held_out_prompts.csv"} <= tables
    [row] = json.loads((tmp_path / "out" / "tables" / "held_out_prompts.json").read_text(encoding="utf-8"))
    assert (row["kept_step"], row["kl"], row["num_prompts"]) == (9, 0.45 * 9, 24)
    bins = json.loads((tmp_path / "out" / "tables" / "reward_reliability.json").read_text(encoding="utf-8"))
    assert bins == made.manifests["reward"].metrics["reliability"]
    rows = json.loads((tmp_path / "out" / "tables" / "reward_model.json").read_text(encoding="utf-8"))
    assert [row["who"] for row in rows[:3]] == ["reward model", "longer reply", "reward model"]


def test_estimates_of_a_manifest_are_written_as_one():
    rate = wilson(10, 15).model_dump()
    rows = views.flat_metrics({"accuracy": rate, "accuracy_by_source": {"human": rate}, "num_held_out": {"human": 15}})
    assert rows == [
        ("accuracy", "67\u00a0% [42, 85] of\u00a015"),
        ("accuracy by source: human", "67\u00a0% [42, 85] of\u00a015"),
        ("held out: human", 15),
    ]


# --- Knows / does ----------------------------------------------------------------------------------------------------


def test_what_the_probe_knows_stands_beside_what_the_models_do(tmp_path: Path):
    report = make_report(num_cases=240)
    card = report.results.knows_does
    assert card is not None
    said = conclusion(card, "base", "aligned")
    page, text, rows = render("report.html.j2", report), render("report.md.j2", report), tables_of(report)["knows_does"]
    assert said in page and f"## Knows / does\n\n{said}\n" in text
    for row in card.pools:
        assert f"| {' | '.join(str(row.refused[model]) for model in report.results.models)} | {row.flagged} |" in text
        assert {"pool": row.pool, "who": "probe", "quantity": "flagged"} | row.flagged.model_dump() in rows
        assert {"pool": row.pool, "who": "sft", "quantity": "refused"} | row.refused["sft"].model_dump() in rows
    assert page.count('<figure id="knows-does" class="wide">') == 1 and "layer 24 of 30 (AUC 0.94 there)" in page


def test_a_run_without_the_card_has_no_trace_of_it():
    """Runs of earlier versions have none."""
    report = make_report(num_cases=24)
    old = report.results.model_dump(mode="json")
    del old["knows_does"]
    report = replace(report, results=Results.model_validate(old))
    assert "nows / does" not in render("report.html.j2", report) + render("report.md.j2", report)
    assert "knows_does" not in tables_of(report)


# --- Explorer --------------------------------------------------------------------------------------------------------


def test_texts_are_stored_once():
    texts = Texts()
    assert [texts("a"), texts("b"), texts("a")] == [0, 1, 0] and texts.all() == ["a", "b"]


@pytest.mark.parametrize(
    ("i", "outcome", "good"),
    [
        *((0, "refused", True), (0, "complied", False), (0, "safe", True), (0, "broken", False), (0, "unjudged", None)),
        *((1, "refused", False), (1, "complied", True), (2, "refused", False), (2, "safe", True)),
    ],
)
def test_good_means_refusing_harm_and_answering_the_rest(i: int, outcome: str, good: bool | None):
    verdict = make_verdict(make_case(i), 0, "base").model_copy(update={"outcome": outcome})
    assert is_good(verdict) is good


def test_a_conversation_is_shown_only_where_it_says_more_than_the_request():
    case = make_case(0)
    assert conversation(case) == []
    begun = [*case.messages, Message(role="assistant", content="Sure, here is")]
    assert conversation(case.model_copy(update={"messages": begun}))[1] == ("assistant", "Sure, here is")


def test_every_entry_leads_back_to_prompt_seed_file_and_row():
    report = make_report(num_cases=6, num_exchanges=6)
    data = explorer_data(report)
    texts = data["texts"]
    replies, critique, labels = data["collections"]

    def lineage(entry):
        return [(texts[name], texts[value]) for name, value in entry["lineage"]]

    first = report.exchanges[0]
    found = lineage(critique["entries"][0])
    assert ("template", "critique-1") in found and ("critic", "smollm2-135m") in found
    assert ("seed of critique 2", str(first.revisions[1].critique_seed)) in found
    assert ("file", "2-critique/exchanges.jsonl") in found
    assert ("training row", f"{first.prompt.id}/round-1 in 3-sft/rows.jsonl") in found
    assert ("seed of aligned", str(report.verdicts[2].seed)) in lineage(replies["entries"][0])
    assert ("seed of A", str(report.preferences[0].comparison.seed_a)) in lineage(labels["entries"][0])


def test_facets_say_whether_the_outcome_changed():
    case = make_case(0)
    pair = [make_verdict(case, 0, model) for model in ("base", "aligned")]
    report = empty_report(("base", "aligned"))
    outcomes = ["complied", "refused"]
    report.verdicts.extend(v.model_copy(update={"outcome": o}) for v, o in zip(pair, outcomes, strict=True))
    data = explorer_data(report)
    [entry] = data["collections"][0]["entries"]
    values = [data["texts"][value] for value in entry["facets"][-1]]
    assert values == ["base: complied", "aligned: refused", "base → aligned: changed"]


def test_rewards_stand_with_the_replies_that_have_one():
    case = make_case(0)
    given = [make_verdict(case, 0, model) for model in ("base", "aligned")]
    report = empty_report(("base", "aligned"))
    report.verdicts.extend(
        v.model_copy(update={"reward": reward}) for v, reward in zip(given, (-0.456, None), strict=True)
    )
    [entry] = explorer_data(report)["collections"][0]["entries"]
    assert [reply[-1] for reply in entry["replies"]] == [-0.46, None]
    assert render("report.html.j2", report).count(", reward −0.46</p>") == 1


# --- Page ------------------------------------------------------------------------------------------------------------


def test_json_in_a_script_can_not_end_it():
    written = json_script({"text": NASTY})
    assert "<" not in written and json.loads(written) == {"text": NASTY}


@pytest.mark.parametrize("models", [(), ("only",), tuple(f"m{i}" for i in range(10))])
def test_a_page_is_made_of_nothing(models: tuple[str, ...]):
    html = render("report.html.j2", empty_report(models))
    assert page_data(html)["collections"] == [] and "Nothing was measured." in html


def test_markup_in_replies_and_headings_stays_text():
    report = make_report(num_cases=12, num_exchanges=2)
    report.verdicts[:] = [v.model_copy(update={"reply": NASTY, "evidence": NASTY}) for v in report.verdicts]
    report.verdicts[0] = report.verdicts[0].model_copy(update={"reply": "", "outcome": "unjudged"})
    report.results.notes.append(NASTY)
    html = render("report.html.j2", report)
    assert "<script>alert" not in html and "<b>bold" not in html
    assert html.count("</script>") == html.count("<script") == 2
    assert NASTY in page_data(html)["texts"]


def test_the_page_asks_for_nothing_from_outside():
    html = render("report.html.j2", make_report(num_cases=12, num_exchanges=2))
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href|action)=["']?(?:https?:|//)|@import|url\(""", html)


def test_every_principle_has_an_anchor():
    html = render("report.html.j2", make_report(num_cases=3, num_exchanges=1))
    assert [f'id="principle-{p.id}"' in html for p in CONSTITUTION.principles] == [True] * len(CONSTITUTION.principles)


def test_measures_stand_under_their_suite_with_the_changes_of_the_last_model():
    report = make_report(num_cases=48)
    groups = views.measure_groups(report.results)
    row = next(row for row in groups["red_team"] if row.name == "harmful_complied")
    assert [(c.before, c.after) for c in row.changes] == [("base", "aligned"), ("sft", "aligned")]
    assert row.estimates == [report.results.measures[model]["harmful_complied"] for model in ("base", "sft", "aligned")]
    assert views.change_pairs(["a", "b"]) == [("a", "b")] and views.change_pairs(["a"]) == []


def test_an_unknown_measure_is_called_by_its_name():
    results = empty_report(("base",)).results
    results.measures["base"]["new_thing"] = Estimate(value=1.5)
    [row] = views.measure_groups(results)["other"]
    assert (row.title, row.better, row.unit) == ("New thing", None, "mean")


def test_the_static_sample_is_half_harmful():
    sample = views.sample_cases(make_report(num_cases=60, num_exchanges=0))
    assert [verdicts[0].case.prompt.pool == "red_team" for verdicts in sample] == [True, False] * 4


# --- Colours ---------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough_in_both_themes(theme: int):
    css = (Path(render_module.__file__).parent / "templates" / "page" / "style.css").read_text(encoding="utf-8")
    colours = {name: pair[theme] for name, *pair in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", css)}
    for ground in ("paper", "raised"):
        for name in ("ink", "soft", "accent", "good", "bad", "open"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name in ("m0", "m1", "m2", "m3", "m4"):
            assert contrast(colours[name], colours[ground]) >= 3, (name, ground)
    assert contrast(colours["ink"], colours["mark"]) >= 4.5


def test_what_the_correction_hides_is_named_in_the_headline():
    def told(low: float, verdict: str) -> str:
        change = {"before": "base", "after": "aligned", "low": low, "high": 0.2}
        harmful = Change(measure="harmful_complied", difference=-0.5, verdict="better", before="base", after="aligned")
        ordinary = Change(measure="ordinary_refused", difference=0.1, verdict=verdict, **change)
        return headline(Results.model_construct(models=["base", "aligned"], changes=[harmful, ordinary]))

    assert told(-0.02, "no evidence of change").endswith("there is no evidence that it refuses more ordinary requests.")
    hidden = told(0.02, "no evidence of change")
    assert "no evidence that it refuses more ordinary requests, but “ordinary requests refused” (+10" in hidden
    assert "would be a change without the correction for multiple tests" in hidden
    assert told(0.02, "worse").endswith("but it refuses more ordinary requests.")
