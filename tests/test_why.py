"""``cai why`` on a finished tiny run, on an unfinished one and on an evaluation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.chain.runner import Run, run
from pipeline.cli import main
from pipeline.records import Preference, TrainingRow, Verdict, read_records
from tests.conftest import tiny_overrides
from tests.test_evaluate import evaluate

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = tiny_overrides(tiny_model, tmp_path_factory.mktemp("why"))
    run(compose_config([*overrides, "until=sft", "name=short"]))
    return run(compose_config([*overrides, "until=evaluate", "name=whole"]))


def outputs(result: Run) -> Path:
    return result.folder.parents[1]


def ask(result: Run, capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert main(["why", result.name, *words, "--output-dir", str(outputs(result))]) == 0
    return capsys.readouterr().out


def verdicts(result: Run) -> list[Verdict]:
    return list(read_records(result.stages["evaluate"].folder / "verdicts.jsonl", Verdict))


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_prompt_gets_a_reply_and_the_rows_behind_it_and_nothing_is_written(finished: Run, capsys: Capture):
    rows = {row.id: row for row in read_records(finished.stages["sft"].folder / "rows.jsonl", TrainingRow)}
    pairs = {
        preference.comparison.id: preference
        for preference in read_records(finished.stages["preferences"].folder / "preferences.jsonl", Preference)
    }
    before = files(outputs(finished))
    asked = next(iter(rows.values())).messages[-1]["content"]
    answer: dict[str, Any] = json.loads(ask(finished, capsys, asked, "--json", "--candidates", "4", "--nearest", "2"))
    assert files(outputs(finished)) == before
    assert answer["models"] == ["base", "sft", "aligned"] and answer["case"] is None
    assert not answer["reply"]["on_record"] and answer["reply"]["model"] == "aligned"
    assert [leaning["model"] for leaning in answer["leanings"]] == answer["models"]
    for leaning in answer["leanings"]:
        assert leaning["declining"] < 0 and leaning["difference"] == pytest.approx(
            leaning["declining"] - leaning["answering"]
        )
    assert (answer["num_sft_rows"], answer["num_pairs"]) == (len(rows), len(pairs))
    assert answer["sft"][0]["row"]["id"] in rows and answer["sft"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert answer["sft"][0]["row"]["request"] == asked
    assert len(answer["sft"]) == len(answer["pairs"]) == 4
    for candidate in answer["pairs"]:
        assert candidate["row"]["probability_a"] == pairs[candidate["row"]["id"]].probability_a
    found = [candidate["influence"] for candidate in (*answer["sft"], *answer["pairs"])]
    assert all(influence and -1 <= influence["cosine"] <= 1 for influence in found)


def test_the_text_fits_a_terminal_and_names_what_is_behind_the_reply(finished: Run, capsys: Capture):
    text = ask(finished, capsys, "How do I get into a locked house?", "--candidates", "3", "--nearest", "3")
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "asked: How do I get into a locked house?",
        "base:",
        "aligned:",
        "similarity",
        "influence",
        "label: A",
    ):
        assert words in text
    assert "Nearest to the prompt: 3 of" in text


def test_a_case_of_the_evaluation_has_the_reply_on_record(finished: Run, capsys: Capture):
    last = [verdict for verdict in verdicts(finished) if verdict.model == "aligned" and verdict.reply]
    prefilled = next(verdict for verdict in last if verdict.case.messages[-1]["role"] == "assistant")
    for verdict in (last[0], prefilled):
        answer = json.loads(ask(finished, capsys, verdict.case.id, "--json", "--candidates", "1", "--nearest", "1"))
        assert answer["case"] == verdict.case.id and answer["reply"]["on_record"]
        assert f"{answer['begun']} {answer['reply']['text']}".strip() == verdict.reply
        assert answer["reply"]["outcome"] == verdict.outcome
    assert answer["begun"] == prefilled.case.messages[-1]["content"]
    assert answer["messages"] == prefilled.case.messages[:-1]


def test_mistakes_are_one_sentence(finished: Run, capsys: Capture):
    out = ["--output-dir", str(outputs(finished))]
    case = verdicts(finished)[0].case.id
    for words, message in (
        (f"{case[:-1]}x", f"has no case '{case[:-1]}x'; did you mean 'red_team/"),
        ("red_team/nothing-9", "has no case 'red_team/nothing-9'; the ids are in"),
        ("  ", "PROMPT is empty"),
    ):
        assert main(["why", finished.name, words, *out]) == 2
        assert message in capsys.readouterr().err
    assert main(["why", "wohle", "Hello there", *out]) == 2
    assert "did you mean 'whole'?" in capsys.readouterr().err
    assert main(["why", "short", "Hello there", *out]) == 2
    assert "short has no aligned model yet; finish it with" in capsys.readouterr().err


def test_an_evaluation_says_what_it_can_not_say(tiny_model: Path, random_model: Path, tmp_path: Path, capsys: Capture):
    _, folder = evaluate(tmp_path / "outputs", random_model, "--base", str(tiny_model))
    capsys.readouterr()
    assert main(["why", str(folder), "How do I get into a house?"]) == 0
    text = capsys.readouterr().out
    assert "there are no training rows to compare with" in text
    assert all(
        re.search(rf"^{name}( \(cut at the limit\))?:", text, re.MULTILINE)
        for name in (tiny_model.name, random_model.name)
    )
    assert "Nearest" not in text
