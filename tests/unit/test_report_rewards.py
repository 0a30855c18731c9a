"""What the report says of the reward model, of the rewards on held-out prompts, and of the labels they come from."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.chain.config import ModelConfig
from pipeline.evals.results import Estimate
from pipeline.evals.statistics import paired_difference, wilson
from pipeline.report import rewards, views
from pipeline.report.build import Report, build_report
from pipeline.report.render import render
from pipeline.report.tables import tables_of
from pipeline.report.write import write_report
from tests.report_data import CONSTITUTION, HELD_OUT_BEFORE, make_report, with_metrics, write_stages


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


def test_a_reward_model_of_openings_is_called_so():
    report = make_report(num_cases=3, num_exchanges=1)
    assert not any("tokens of a reply" in sentence for sentence in rewards.reward_model(report).said)
    said = rewards.reward_model(with_metrics(report, "reward", num_reply_tokens=3)).said
    assert "reads only the first 3 tokens of a reply" in said[-1]


def test_accuracy_stands_beside_the_longer_reply_and_by_part():
    report = make_report(num_cases=3, num_exchanges=1)
    metrics = report.manifests["reward"].metrics
    model = rewards.reward_model(report)
    assert [name for name, _ in model.rows] == [
        "all pairs",
        *("harmless look-alikes", "ordinary requests", "harmful requests"),
        *("small margin", "middle margin", "large margin"),
        *("longer preferred", "shorter preferred"),
    ]
    assert model.rows[0][1] == [Estimate(**metrics["accuracy"]), Estimate(**metrics["accuracy_of_longer_reply"])]
    assert model.rows[6] == ("large margin", [Estimate(**metrics["accuracy_by_margin"]["large"]), None])
    assert model.num_pairs["harmful requests"] == "20 pairs"
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
