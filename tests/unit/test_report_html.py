"""The page of the report: changed words, the probe's card, text that stays text, and readable colours."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evals.results import Change, Estimate, Results
from pipeline.report import render as render_module
from pipeline.report import views
from pipeline.report.build import headline
from pipeline.report.diff import word_diff
from pipeline.report.knows import conclusion
from pipeline.report.render import json_script, render
from pipeline.report.tables import tables_of
from tests.report_data import CONSTITUTION, empty_report, make_report

NASTY = (
    "</script><script>alert(1)</script><!-- <b>bold</b> \u202eright to left\u202c مرحبا 👩‍👩‍👧 "
    + "a" * 300
    + "\u2028\x00"
)


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
