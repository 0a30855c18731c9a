"""What differs between runs: settings, words of the constitution, and prompts whose outcome changed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.constitution.schema import Constitution
from pipeline.evals.results import Estimate
from pipeline.records import Verdict
from pipeline.report.compare import Compared, compare
from pipeline.report.differences import NONE, constitution_differences, flips, settings_differences
from pipeline.report.render import fill
from pipeline.report.seeds import over_seeds
from tests.report_data import make_case, make_results, make_verdict

MINIMAL = load_constitution(shipped_constitutions()["minimal"])


def edited() -> Constitution:
    """One word changed, one principle less, one example more."""
    first, _ = MINIMAL.principles
    question = first.preference_question.replace("someone", "anyone")
    example = MINIMAL.worked_examples[0].model_copy(update={"id": "new", "request": "How do I cut a hose?"})
    return MINIMAL.model_copy(
        update={
            "version": "1.0.1",
            "principles": [first.model_copy(update={"preference_question": question})],
            "worked_examples": [*MINIMAL.worked_examples, example],
        }
    )


def verdicts(model: str, **outcomes: str) -> list[Verdict]:
    """Verdicts on the first cases; some with another outcome, by number."""
    found = [make_verdict(make_case(i), 0, model) for i in range(12)]
    return [
        verdict.model_copy(update={"outcome": outcomes.get(f"n{i}", verdict.outcome), "reply": f"<b>{model} | {i}</b>"})
        for i, verdict in enumerate(found)
    ]


def compared(name: str, constitution: Constitution | None, rows: list[Verdict], **config: object) -> Compared:
    return Compared(
        label=name, name=name, results=make_results(rows), verdicts=rows, judge="patterns", confidence=0.95,
        settings=dict.fromkeys(("split", "max_reply_tokens", "temperature", "top_p"), 1), config=config,
        constitution=constitution,
    )  # fmt: skip


def test_settings_that_differ_are_named_in_full():
    one = {"seed": 0, "align": {"beta": 0.1, "rewards": {}}, "output_dir": "a", "tracking": {"kind": "none"}}
    other = {"seed": 0, "align": {"beta": 0.2, "rewards": {"brief": 1}}, "output_dir": "b", "name": "x"}
    assert settings_differences([one, other]) == [
        ("align.beta", ["0.1", "0.2"]),
        ("align.rewards", ["{}", NONE]),
        ("align.rewards.brief", [NONE, "1"]),
    ]
    assert settings_differences([one, one]) == []


def test_words_that_differ_are_marked():
    found = {f"{c.section}/{c.id}": (c.what, c.text) for c in constitution_differences(MINIMAL, edited())}
    assert found == {
        "constitution/version": ("changed", "1.0.[-0-]{+1+}"),
        "principles/no-harm.preference_question": (
            "changed",
            "Which of these replies is less likely to lead to [-someone-]{+anyone+} being harmed?",
        ),
        "principles/real-help": ("removed", "Real help"),
        "worked_examples/new": ("added", "How do I cut a hose?"),
    }
    assert constitution_differences(MINIMAL, MINIMAL) == []


def test_only_cases_of_both_with_another_outcome_flip():
    before, after = verdicts("a", n0="refused", n1="complied"), verdicts("a", n0="complied", n1="complied")[:-1]
    [flip] = flips(before, after)
    assert (flip.case, flip.before, flip.after) == (before[0].case.id, "refused", "complied")
    assert flip.request == before[0].case.prompt.request and flip.suite == before[0].case.id.partition("/")[0]


def test_the_page_and_the_table_say_the_same_and_escape_texts():
    one = compared("one", MINIMAL, verdicts("a", n0="refused"), seed=0)
    other = compared("other", edited(), verdicts("a", n0="complied"), seed=1)
    lost = compared("lost", None, verdicts("a", n0="refused"), seed=0)
    found = compare([one, other, lost], "default")
    page, text = (fill(f"comparison.{kind}.j2", comparison=found) for kind in ("html", "md"))
    for part in ("run 3", "2 against 1", "3 against 1", "seed", "can't be read any more", "UNDECIDED"):
        assert part in page and part in text, part
    assert "<b>a | 0</b>" not in page and "&lt;b&gt;a | 0&lt;/b&gt;" in page
    assert "<del>someone</del>" in page and "[-someone-]{+anyone+}" in text
    assert "1 prompts have another outcome" in text and "No prompt has another outcome." in text
    assert [len(d.flips) for d in found.differences] == [1, 0]
    assert json.loads(found.model_dump_json())["differences"][0]["counts"][0]["number"] == 1


def test_runs_that_differ_in_the_seed_alone_are_summed_up():
    rows = [verdicts("a"), verdicts("a", n0="complied"), verdicts("a", n0="complied", n4="complied")]
    runs = [compared(str(i), MINIMAL, some, seed=i, sft={"num_epochs": 3}) for i, some in enumerate(rows)]
    runs.append(compared("longer", MINIMAL, rows[0], seed=0, sft={"num_epochs": 6}))
    found = compare(runs, None)
    assert [group.numbers for group in found.seeds] == [[1, 2, 3]], "two runs with one seed tell nothing about seeds"
    others = [compared(str(i), text, rows[i], seed=i) for i, text in enumerate((MINIMAL, edited(), None))]
    assert compare(others, None).seeds == [], "their constitutions differ, or can't be read"
    shown = {row.title: row.cells for row in found.measures}
    for row in found.seeds[0].measures:
        assert [cell.split()[0] for cell in row.cells[1:3]] == _ends(cell.split()[0] for cell in shown[row.title][:3])
    page, text = (fill(f"comparison.{kind}.j2", comparison=found) for kind in ("html", "md"))
    assert "Runs 1, 2, 3 differ in the seed alone" in page and "Runs 1, 2, 3 differ in the seed alone" in text


def _ends(shown: Iterable[str]) -> list[str]:
    numbers = sorted(shown, key=float)
    return [numbers[0], numbers[-1]]


def test_the_spread_over_seeds():
    rates = [Estimate(value=count / 10, count=count, total=10) for count in (1, 2, 6)]
    assert over_seeds(rates) == ["30 %", "10 %", "60 %", "26 %"], "√((0.2² + 0.1² + 0.3²) / 2) = 0.26"
    assert over_seeds([Estimate(value=1.0), Estimate(value=1.5)]) == ["1.25", "1", "1.5", "0.354"]
    assert over_seeds([*rates, None]) is over_seeds([*rates, Estimate(value=None)]) is None


def test_two_files_are_compared_and_one_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["constitution", "diff", "minimal", "minimal"]) == 0
    assert capsys.readouterr().out == "no text differs\n"
    assert main(["constitution", "diff", "minimal", "default"]) == 0
    assert "constitution, name, changed: [-minimal-]{+default+}" in capsys.readouterr().out
    assert main(["constitution", "diff", "minimal", "defualt"]) == 2
    assert "did you mean 'default'" in capsys.readouterr().err
    assert main(["constitution", "show", "minimal", "--examples"]) == 0
    shown = capsys.readouterr().out
    assert "No help with harm (no-harm; harmlessness)" in shown and "slash-tyres" in shown
