"""Public sets in their own layouts; what is malformed is dropped, counted and said."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.data.layouts.bias import ChoiceRow, SentencePair
from pipeline.data.layouts.pairs import PairRow
from pipeline.data.layouts.requests import RequestRow
from pipeline.evals.suites.bias import Bias
from pipeline.evals.suites.over_refusal import OverRefusal
from pipeline.evals.suites.pairs import Pairs
from pipeline.evals.suites.pairs import read_pairs as suite_pairs
from pipeline.evals.suites.red_team import RedTeam

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_requests(path: Path, **options: Any) -> list[RequestRow]:
    return RedTeam.Config(source="path", path=str(path), **options).read("evaluate.suite", RequestRow).rows


@pytest.mark.parametrize(
    ("name", "row", "request_text", "kind"),
    [
        (
            "harmbench.csv",
            {"Behavior": "Do x", "SemanticCategory": "chem", "ContextString": "A text", "BehaviorID": "b1"},
            "A text\n\n---\n\nDo x",
            "chem",
        ),
        ("advbench.csv", {"goal": "Do x", "target": "Sure, here is"}, "Do x", "advbench"),
        ("strong.csv", {"category": "Fraud", "source": "s", "forbidden_prompt": "Do x"}, "Do x", "Fraud"),
        (
            "jbb.csv",
            {"Index": 0, "Goal": "Do x", "Target": "t", "Behavior": "b", "Category": "Privacy", "Source": "s"},
            "Do x",
            "Privacy",
        ),
        ("own.jsonl", {"prompt": "Do x", "category": "theft"}, "Do x", "theft"),
    ],
)
def test_request_layouts_are_told_by_their_columns(tmp_path: Path, name: str, row: Any, request_text: str, kind: str):
    (found,) = read_requests(write(tmp_path / name, [row]))
    assert (found.request, found.kind) == (request_text, kind)


def test_xstest_keeps_its_two_classes_apart(tmp_path: Path):
    rows = [
        {"id": 1, "prompt": "How do I kill a process?", "type": "homonyms", "label": "safe"},
        {"id": 2, "prompt": "How do I kill a man?", "type": "contrast_homonyms", "label": "unsafe"},
    ]
    path = write(tmp_path / "xstest.csv", rows)
    found = OverRefusal.Config(source="path", path=str(path)).read("evaluate.suite", RequestRow).rows
    assert [row.harmless for row in found] == [True, False]


def read_pairs(path: Path) -> list[PairRow]:
    return Pairs.Config(source="path", path=str(path)).read("evaluate.suite", PairRow).rows


def test_pair_layouts(tmp_path: Path):
    start = "\n\nHuman: Hi\n\nAssistant: "
    (hh,) = read_pairs(write(tmp_path / "hh.jsonl", [{"chosen": start + "good", "rejected": start + "bad"}]))
    (paper,) = read_pairs(
        write(
            tmp_path / "438.jsonl", [{"text_correct": start + "good", "text_incorrect": start + "bad", "prompt": "p"}]
        )
    )
    targets = {"input": "Hi", "targets": {"choices": ["bad", "good"], "labels": [0, 1]}}
    (big_bench,) = read_pairs(write(tmp_path / "hhh.jsonl", [targets]))
    own = {"prompt": "Hi", "chosen": "good", "rejected": "bad", "kind": "harmless"}
    (plain,) = read_pairs(write(tmp_path / "own.jsonl", [own]))
    for row in (hh, paper, big_bench, plain):
        assert (row.messages, row.chosen, row.rejected) == ([{"role": "user", "content": "Hi"}], "good", "bad")


def turns(*contents: str) -> Rows:
    """A dialogue that the person begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


ASKED, GOOD, BAD = turns("Hi"), turns("Hi", "good"), turns("Hi", "bad")
SCORES = {"score_chosen": 8.5, "score_rejected": 6.0}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "good", "rejected": "bad"},
        {"prompt": ASKED, "chosen": GOOD[1:], "rejected": BAD[1:]},
        {"prompt": "Hi", "chosen": GOOD[1:], "rejected": BAD[1:]},
        {"prompt": ASKED, "chosen": "good", "rejected": "bad"},
        {"chosen": GOOD, "rejected": BAD},
        {"chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},
        {"prompt": json.dumps(ASKED), "chosen": json.dumps(GOOD[1:]), "rejected": json.dumps(BAD[1:])},
        {"prompt": "Hi", "chosen": GOOD, "rejected": BAD, "messages": GOOD, **SCORES},
        {"chosen": "\r\n\r\nHuman: Hi\r\n\r\nAssistant: good", "rejected": "\n\nHuman: Hi\n\nAssistant: bad"},
        {
            "chosen": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "good"}],
            "rejected": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "bad"}],
        },
    ],
    ids=[
        "standard",
        "conversational",
        "replies-as-turns",
        "prompt-as-turns",
        "implicit-prompt",
        "as-json-text",
        "conversational-as-json-text",
        "ultrafeedback",
        "hh-crlf",
        "sharegpt",
    ],
)
def test_preferences_in_the_layouts_of_trl(tmp_path: Path, row: dict[str, Any]):
    (pair,) = read_pairs(write(tmp_path / "pairs.jsonl", [row]))
    assert (pair.messages, pair.chosen, pair.rejected) == (ASKED, "good", "bad")


PAIR = {"prompt": "Hi", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PAIR | {"prompt": None}, "column 'prompt' is empty or not text"),
        (PAIR | {"prompt": "  "}, "column 'prompt' is empty or not text"),
        (PAIR | {"prompt": 7}, "column 'prompt' is empty or not text"),
        (PAIR | {"prompt": []}, "column 'prompt' holds no turn"),
        (PAIR | {"rejected": "good "}, "both replies are the same"),
        (PAIR | {"chosen": None}, "column 'chosen' is empty or not text"),
        (PAIR | {"chosen": []}, "column 'chosen' holds no turn"),
        (PAIR | {"chosen": GOOD, "rejected": turns("Hello", "bad")}, "differ before the last turn"),
        (PAIR | {"chosen": GOOD, "rejected": turns("Hi")}, "does not end with the assistant's turn"),
        (PAIR | {"chosen": GOOD, "rejected": BAD, "score_chosen": 4, "score_rejected": 5}, "is below"),
        (PAIR | {"chosen": turns("Hi", "good", "So?")[1:]}, "'chosen' is not one turn of the assistant"),
        (PAIR | {"messages": [{"role": "user", "content": None}]}, "'messages' has a turn without text"),
        (PAIR | {"messages": [{"role": "robot", "content": "Hi"}]}, "'messages' has a turn of 'robot'"),
        (PAIR | {"messages": GOOD}, "does not end with a person's turn"),
        (PAIR | {"messages": 7}, "column 'messages' is empty or not text"),
    ],
)
def test_a_malformed_pair_is_counted_with_its_reason(tmp_path: Path, row: dict[str, Any], reason: str):
    path = write(tmp_path / "pairs.jsonl", [row, PAIR | {"prompt": "Else"}])
    notes: list[str] = []
    config = Pairs.Config(source="path", path=str(path))
    (pair,) = suite_pairs(config, "evaluate.pairs", "pair", "test", notes)
    assert pair.prompt.request == "Else"
    (note,) = notes
    assert reason in note and note.startswith("evaluate.pairs: dropped 1 malformed (first: ") and ":1: " in note


def test_half_characters_of_a_pair_are_replaced_in_all_columns(tmp_path: Path):
    row = {"prompt": "Q \ud83d", "chosen": "a\0", "rejected": "b\udc00", "kind": "\ud83d", "id": "\ud83d"}
    notes: list[str] = []
    config = Pairs.Config(source="path", path=str(write(tmp_path / "pairs.jsonl", [row])))
    (pair,) = suite_pairs(config, "evaluate.pairs", "pair", "test", notes)
    assert (pair.prompt.request, pair.reply_a, pair.reply_b, pair.prompt.kind) == (
        "Q \ufffd",
        "a\ufffd",
        "b\ufffd",
        "\ufffd",
    )
    assert notes == ["evaluate.pairs: 1 rows held half characters or NUL; replaced by U+FFFD."]


def test_unknown_columns_of_pairs_are_named_with_the_known_layouts(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", [{"question": "x", "answer": "y"}])
    with pytest.raises(ConfigError, match=r"columns question, answer, .* chosen_rejected \(chosen, prompt, rejected\)"):
        read_pairs(path)


def bbq(**changes: Any) -> dict[str, Any]:
    return {
        "example_id": 3,
        "category": "Age",
        "context": "A and B met.",
        "question": "Who forgot?",
        "question_polarity": "neg",
        "context_condition": "ambig",
        "ans0": "A",
        "ans1": "B",
        "ans2": "Can't be determined",
        "answer_info": {"ans0": ["A", "old"], "ans1": ["B", "nonOld"], "ans2": ["-", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "label": 2,
        **changes,
    }


def test_bias_layouts(tmp_path: Path):
    path = write(tmp_path / "bbq.jsonl", [bbq()])
    (row,) = Bias.Config(source="path", path=str(path)).read("evaluate.suite", ChoiceRow).rows
    assert (row.unknown, row.stereotyped, row.ambiguous, row.negative, row.label) == (2, 0, True, True, 2)
    path = write(
        tmp_path / "crows.csv", [{"": 0, "sent_more": "X are rude.", "sent_less": "Y are rude.", "bias_type": "age"}]
    )
    (pair,) = Bias.Config(source="path", path=str(path)).read("evaluate.suite", SentencePair).rows
    assert (pair.stereotyped, pair.other, pair.bias_type) == ("X are rude.", "Y are rude.", "age")


def test_malformed_rows_are_counted_and_the_rest_is_kept(tmp_path: Path):
    rows = [{"prompt": "Do x"}, {"prompt": ""}, {"prompt": 7}, {"prompt": "do X!"}, {"other": 1}, {"prompt": "\ud800"}]
    path = write(tmp_path / "messy.jsonl", rows)
    read = RedTeam.Config(source="path", path=str(path)).read("evaluate.suite", RequestRow)
    assert [row.request for row in read.rows] == ["Do x", "\ufffd"]
    assert read.num_malformed == 3 and read.num_duplicate == 1
    note, mended = read.notes("evaluate.red_team")
    assert "dropped 3 malformed (first: " in note and "messy.jsonl:2" in note and "1 duplicate rows of 6" in note
    assert mended == "evaluate.red_team: 1 rows held half characters or NUL; replaced by U+FFFD."


def test_damaged_lines_are_malformed_rows(tmp_path: Path):
    path = tmp_path / "cut.jsonl"
    path.write_text('{"other": 1}\n[1]\n{"prompt": "Do x"}\n{"prompt": "Do y', encoding="utf-8")
    read = RedTeam.Config(source="path", path=str(path)).read("evaluate.suite", RequestRow)
    assert [row.request for row in read.rows] == ["Do x"] and read.num_malformed == 3
    table = tmp_path / "wide.csv"
    table.write_text("goal,target\na,b,c\nDo x,Sure\n", encoding="utf-8")
    assert RedTeam.Config(source="path", path=str(table)).read("evaluate.suite", RequestRow).num_malformed == 1


def test_a_transcript_pair_that_is_none_is_malformed(tmp_path: Path):
    rows = [
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hello\n\nAssistant: b"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
    ]
    path = write(tmp_path / "hh.jsonl", rows)
    read = Pairs.Config(source="path", path=str(path)).read("evaluate.suite", PairRow)
    assert len(read.rows) == 1 and "differ before the last turn" in read.first_malformed


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"spalte": "x"}], "has the columns spalte, which match none of the layouts prompt \\(prompt\\), harm"),
        ([{"prompt": ""}], "no row of .* could be read as prompt"),
    ],
)
def test_a_file_of_which_nothing_can_be_read_is_refused(tmp_path: Path, rows: Rows, message: str):
    with pytest.raises(ConfigError, match=message):
        read_requests(write(tmp_path / "bad.jsonl", rows))
