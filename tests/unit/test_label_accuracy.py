"""The table of labellers says who only reads the pool, who only reads the replies, and whose server is dead."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.config import Config
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.errors import ConfigError, StageError
from pipeline.engines.base import Query, ReplyQuery
from pipeline.evals.label_accuracy import (
    LabelAccuracy,
    answers_to_twins,
    described,
    filed_under,
    hold_back,
    markdown,
    measure,
    twin_pairs,
)
from pipeline.labellers.base import LABELLERS
from tests.conftest import load_script
from tests.fakes import FakeEngine, FakeLogbook

CONSTITUTION, HELD = hold_back(load_constitution(find_constitution("default")), 6)
PAIRS = twin_pairs(HELD, {contrast.id: "Here is how. First, take your time." for contrast, *_ in HELD})
REFUSALS = {reply for _, reply in CONSTITUTION.declined([], 1000)}


def measured(answer: Callable[[Query], list[float]], **settings: Any) -> list[LabelAccuracy]:
    engine = FakeEngine(answer=answer)
    return list(measure(engine, LABELLERS.parse(settings), CONSTITUTION, "twins", PAIRS))


def likes_what_it_is_shown(query: Query) -> list[float]:
    """A reply is likely if it declines and so do the examples, or if neither does."""
    assert isinstance(query, ReplyQuery)
    shown = [turn["content"] for turn in query.messages if turn["role"] == "assistant"]
    return [-1.0 if (shown[0] in REFUSALS) == (not query.reply.startswith("Here")) else -2.0]


def test_held_back_contrasts_are_not_shown_and_give_the_same_replies_twice():
    kept = {contrast.id for contrast in CONSTITUTION.contrasts}
    assert not kept & {contrast.id for contrast, *_ in HELD} and len(HELD) == 6
    harmful, twin = PAIRS[0], PAIRS[1]
    assert (harmful.reply_a, harmful.reply_b) == (twin.reply_b, twin.reply_a)
    assert harmful.reply_a == HELD[0][0].revision
    assert (harmful.prompt.kind, twin.prompt.kind) == ("harmful", "twin")


def test_a_labeller_that_only_reads_the_pool_is_found_out():
    told, hidden = measured(likes_what_it_is_shown, kind="likelihood")
    assert (told.pool, told.accuracy.value) == ("told", 1.0)
    assert (hidden.pool, hidden.accuracy.value) == ("hidden", 0.5)
    assert {kind: found.value for kind, found in hidden.by_kind.items()} == {"harmful": 1.0, "twin": 0.0}
    assert told.accuracy.low is not None and told.accuracy.low < 1 and told.num_calls > 0


def likes_answers(query: Query) -> list[float]:
    """Always chooses the reply that begins with "Here", except in the third wording, where it chooses the other."""
    text = query.messages[-1]["content"]
    first = ("(A) Here" in text) != text.startswith("A person wrote:")
    return [math.log(0.9), math.log(0.1)] if first else [math.log(0.1), math.log(0.9)]


def test_a_labeller_that_only_reads_the_replies_is_right_on_half_and_wordings_are_compared():
    rows = [row for row in measured(likes_answers, kind="ab") if row.pool == "told"]
    assert [(row.wording, row.accuracy.value) for row in rows] == [("1", 0.5), ("2", 0.5), ("3", 0.5)]
    assert [row.by_kind["twin"].value for row in rows] == [1.0, 1.0, 0.0]
    assert [row.wording_flips.value for row in rows] == [None, None, 1.0]
    assert rows[0].order_flips.value == 0.0


def test_a_labeller_that_chooses_by_the_place_has_ties_and_flips():
    first = measured(lambda query: [math.log(0.9), math.log(0.1)], kind="ab", wordings=[1])[0]
    assert first.accuracy.value == 0.5 and first.order_flips.value == 1.0 and first.wording == ""


def test_unreadable_answers_are_counted_and_not_guessed():
    row = measured(lambda query: [-30.0, -30.0], kind="ab", wordings=[1])[0]
    assert row.accuracy.value is None and row.num_unanswered == len(PAIRS)
    assert f"{len(PAIRS)} not readable" in markdown([row])


def test_a_dead_engine_gives_rows_that_say_so():
    def dead(query: Query) -> list[float]:
        raise StageError("the server is gone")

    rows = measured(dead, kind="ab")
    assert [row.error for row in rows] == ["the server is gone"] * 6
    assert "failed: the server is gone" in markdown(rows)


def test_twins_without_a_usable_answer_are_left_out(tmp_path):
    silent = HELD[0][0].id
    engine = FakeEngine(reply=lambda request: "" if request.id == silent else "Stir it well. Then wait.")
    answers = answers_to_twins(engine, HELD, FakeLogbook(tmp_path))  # type: ignore[arg-type]
    assert len(answers) == 5 and len(twin_pairs(HELD, answers)) == 10


def test_the_table_names_the_settings_that_were_changed():
    assert described(LABELLERS.parse({"kind": "ab"})) == "ab"
    assert described(LABELLERS.parse({"kind": "ab", "num_examples": 4})) == "ab (num_examples=4)"


@pytest.mark.parametrize("pool", ["red_team", "ordinary"])
def test_pairs_that_are_filed_under_the_hidden_pool_are_asked_about_once(pool: str):
    rows = list(
        measure(
            FakeEngine(answer=likes_what_it_is_shown),
            LABELLERS.parse({"kind": "likelihood"}),
            CONSTITUTION,
            "given",
            filed_under(pool, PAIRS),  # type: ignore[arg-type]
        )
    )
    assert [row.pool for row in rows] == (["told"] if pool == "red_team" else ["told", "hidden"])


def test_the_script_writes_both_files_and_goes_on_after_a_dead_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = load_script("label_accuracy")

    def opened(settings: Any, config: Config) -> FakeEngine:
        if settings.path == "dead":
            raise ConfigError("no such model")
        return FakeEngine(reply=lambda request: "Here is how. Take your time.", answer=likes_what_it_is_shown)

    monkeypatch.setattr(script, "opened", opened)
    people, output = tmp_path / "people.jsonl", tmp_path / "out.json"
    people.write_text(json.dumps({"prompt": "How do I rob a bank?", "chosen": "No.", "rejected": "Here."}) + "\n")
    asked = f"--engine dead --engine fine --labeller likelihood --pairs {people} --num-pairs 4 --num-contrasts 2"
    monkeypatch.setattr("sys.argv", ["label_accuracy.py", *asked.split(), "--output", str(output)])
    script.main()
    first, *rows = json.loads(output.read_text())
    assert (first["engine"], first["error"]) == ("dead", "no such model")
    assert [(row["pairs"], row["pool"]) for row in rows] == [
        ("shipped", "told"),
        ("shipped", "hidden"),
        ("twins", "told"),
        ("twins", "hidden"),
        ("people", "told"),
    ]
    assert [row["accuracy"]["value"] for row in rows[2:]] == [1.0, 0.5, 1.0]
    table = output.with_suffix(".md").read_text()
    assert "| dead |  |  |  |  | failed: no such model |" in table and "| fake | likelihood | twins | hidden |" in table


@pytest.mark.parametrize("kind", ["request", "channel"])
def test_a_labeller_that_does_not_read_the_pool_is_measured_once(kind: str):
    rows = measured(lambda query: [-1.0] * len(getattr(query, "choices", [0])), kind=kind)
    assert {row.pool for row in rows} == {"not read"} and not any(row.error for row in rows)
    assert len(rows) == len({row.wording for row in rows})
