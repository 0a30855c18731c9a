"""Principles under stress: planted contradictions, duplicates and coins are found, and nothing else is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.errors import StageError
from pipeline.engines.base import Answer, AskT, Query, Request
from pipeline.explain.stress import Stress, sentences, stress, worded
from pipeline.explain.stress_counts import OPPOSITE, OWN, Judged, count
from pipeline.explain.tradeoffs import Tradeoff, choose_pairs, draw, read_tradeoffs, write
from pipeline.labellers.base import LABELLERS
from pipeline.records import Judgement, Message, Prompt, derive_seed
from pipeline.report.stressed import markdown
from pipeline.writing.config import WriteConfig
from tests.fakes import FakeEngine, FakeLogbook

Likes = Callable[[str, str], float]
"""(rule, reply) → how good the reply is by this rule."""


def rules(*names: str, **fields: Any) -> Constitution:
    made = [
        Principle(
            id=name,
            title=f"The <{name}> rule",
            tags=["harmlessness"],
            critique_request=f"Find what is not <{name}>.",
            revision_request=f"Make it <{name}>.",
            preference_question=f"Which of these replies is more <{name}>?",
        )
        for name in names
    ]
    texts = {"name": "planted", "version": "1.0.0", "description": "d", "provenance": "p", "preamble": "Be good."}
    return Constitution(principles=made, **texts, **fields)


def quality(*parts: str) -> float:
    """A number from 0 to 1 that depends only on the words."""
    return derive_seed(*parts) / 2**63


class Reader(FakeEngine):
    """Replies in words of its own for each rule. Reads a question of ``ab`` and picks the reply that the rule likes
    more; a rule with ``coin`` in its name always picks (A). Stops like a killed process after so many batches."""

    rows_are_independent = True

    def __init__(self, likes: Likes, batches_until_killed: int = 10**9) -> None:
        super().__init__(reply=lambda request: f"So {derive_seed(repr(request.messages)):x} it is.", answer=self.choose)
        self.likes, self.left = likes, batches_until_killed

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]:
        return [list(asks[start : start + 50]) for start in range(0, len(asks), 50)]

    def _one_batch(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def generate(self, batch: Sequence[Request]) -> list[Any]:
        self._one_batch()
        return super().generate(batch)

    def score(self, batch: Sequence[Query]) -> list[Answer]:
        self._one_batch()
        return super().score(batch)

    def choose(self, query: Query) -> list[float]:
        asked = query.messages[-1]["content"]
        found = re.search(r"\n\n(.*<(\w+)>.*)\n\n\(A\) (.*)\n\n\(B\) (.*)\n\n", asked)
        assert found, asked
        rule, name, a, b = found.groups()
        if "coin" in name:
            return [-0.1, -2.0]
        first = (self.likes(name, a) > self.likes(name, b)) != ("opposite" in rule)
        return [-0.1, -2.0] if first else [-2.0, -0.1]


def planted(name: str, reply: str) -> float:
    """``good`` and ``again`` like the same replies, ``evil`` the others; every other rule has a taste of its own."""
    signs = {"good": 1, "again": 1, "evil": -1}
    return signs[name] * quality(reply) if name in signs else quality(name, reply)


def requests(constitution: Constitution, number: int = 30) -> list[Tradeoff]:
    pairs = choose_pairs(constitution, 100)
    return [
        Tradeoff(first=one.id, second=other.id, request=f"Do thing {n}?") for one, other in pairs for n in range(number)
    ]


class Sampling:
    temperature, top_p, max_reply_tokens = 1.0, 1.0, 16


def stressed(
    constitution: Constitution, engine: FakeEngine, folder: Path, labeller: str = "ab", rows: Any = None
) -> Stress:
    config = LABELLERS.parse({"kind": labeller})
    rows = requests(constitution) if rows is None else rows
    return stress(rows, constitution, engine, config, Sampling(), 0, FakeLogbook(folder), 0.95)[0]


# --- What is found -------------------------------------------------------------------------------------------------


def test_each_planted_oddity_is_found_and_nothing_else(tmp_path: Path):
    result = stressed(rules("good", "evil", "own", "coin", "again"), Reader(planted), tmp_path)
    found = result.found
    assert found.contradictions == [("good", "evil"), ("evil", "again")]
    assert found.near_duplicates == [("good", "again")]
    assert found.only_order == ["coin"] and not found.decided_by_order and not found.ignores_words
    by_id = {rule.id: rule for rule in found.principles}
    assert by_id["coin"].order_flips.value == 1 and by_id["good"].order_flips.value == 0
    assert by_id["good"].wording_flips.value == 0 and by_id["good"].opposite_turns.value == 1
    assert by_id["good"].num_judgements == 120 and result.num_requests == {"given": 300}
    [pair] = [pair for pair in found.pairs if (pair.first, pair.second) == ("good", "evil")]
    assert (pair.agreement.count, pair.agreement.total) == (0, 30) and pair.p_corrected is not None
    assert len(found.pairs) == 6, "a coin prefers nothing, so it agrees with nobody"
    said = " ".join(sentences(result))
    assert "good and evil contradict each other: they prefer the same reply to 0 of 30 requests" in said
    assert "good and again are near-duplicates" in said and "coin: no evidence that more than the order" in said
    assert "| good | evil | 0 % [0, 11] (30) |" in markdown(result)


def test_nothing_is_named_where_every_principle_has_a_taste_of_its_own(tmp_path: Path):
    """Four engines of five unrelated principles: 40 pairs, and no false alarm."""
    names = [f"own{number}" for number in range(5)]
    named = []
    for draw_number in range(4):
        engine = Reader(lambda name, reply, draw_number=draw_number: quality(str(draw_number), name, reply))
        found = stressed(rules(*names), engine, tmp_path / str(draw_number)).found
        named += [*found.contradictions, *found.near_duplicates, *found.only_order]
        assert not found.decided_by_order and not found.ignores_words
    assert not named


@pytest.mark.parametrize("noise", ["always (A)", "a coin for each question"])
def test_an_engine_of_which_the_order_decides_names_nothing(tmp_path: Path, noise: str):
    def coin(query: Query) -> list[float]:
        odds = quality(query.id) if noise.startswith("a coin") else 1.0
        return [-0.1, -2.0] if odds > 0.5 else [-2.0, -0.1]

    constitution = rules("good", "evil", "again")
    engine = FakeEngine(answer=coin)
    result = stressed(constitution, engine, tmp_path)
    found = result.found
    assert found.decided_by_order
    assert not (found.contradictions or found.near_duplicates or found.only_order)
    [sentence] = sentences(result)
    assert (
        sentence.startswith("The order of the replies decides the judgements of fake")
        and "nothing can be said about the principles" in sentence
    )
    assert not any("~title" in row_id for row_id in engine.asked), "other words would not help"
    if noise == "always (A)":
        assert sum(result.num_requests.values()) == 45, "half of the requests are enough to see it"


def test_few_requests_are_said_to_show_little(tmp_path: Path):
    constitution = rules("good", "again")
    result = stressed(constitution, Reader(planted), tmp_path, rows=requests(constitution, 19))
    assert result.found.pairs[0].agreement.count == 19 and not result.found.near_duplicates
    assert "prefer a reply to 20 requests both" in sentences(result)[0]


def test_an_engine_that_does_not_read_the_rule_names_no_duplicates(tmp_path: Path):
    def longest_name(query: Query) -> list[float]:
        a, b = re.findall(r"\([AB]\) (.*)\n", query.messages[-1]["content"])
        return [-0.1, -2.0] if quality(a) > quality(b) else [-2.0, -0.1]

    result = stressed(rules("good", "evil"), FakeEngine(answer=longest_name), tmp_path)
    assert result.found.ignores_words and not result.found.near_duplicates
    assert result.found.pairs[0].agreement.value == 1
    assert "words of a principle decide little" in sentences(result)[0]


def test_pointwise_is_asked_in_the_wordings_that_it_reads(tmp_path: Path):
    def keeps(query: Query) -> list[float]:
        asked = query.messages[-1]["content"]
        rule, reply = re.findall(r"<(\w+)>", asked)[-1], re.findall(r"Reply: (.*)\n", asked)[0]
        odds = planted(rule, reply) * (-1 if "opposite" in asked else 1)
        return [odds, -odds]

    engine = FakeEngine(answer=keeps)
    result = stressed(rules("good", "evil"), engine, tmp_path, "pointwise")
    assert result.found.contradictions == [("good", "evil")] and result.found.order_flips.value is None
    assert {row_id.split("~")[1].split("/")[0] for row_id in engine.asked if "~" in row_id} == {
        OWN,
        "revision",
        OPPOSITE,
    }


def test_judgements_that_turn_are_counted_by_hand():
    def judgement(logit: float | None, flipped: bool = False) -> Judgement:
        return Judgement(principle_id="x", logit=logit, flipped=flipped)

    def row(own: Judgement, title: float, opposite: float) -> Judged:
        return Judged({("x", OWN): own, ("x", "title"): judgement(title), ("x", OPPOSITE): judgement(opposite)})

    rows = [
        row(judgement(1.0), 1.0, -1.0),
        row(judgement(1.0), -1.0, 1.0),  # turns with the wording, and not for the opposite
        row(judgement(-2.0), -1.0, 1.0),
        row(judgement(0.3, flipped=True), 1.0, 1.0),  # prefers neither reply
        row(judgement(None), 1.0, 1.0),
    ]
    [x] = count(rows, {"x": "X"}, 0.95).principles
    assert (x.num_judgements, x.num_unreadable) == (5, 1)
    assert (x.order_flips.count, x.order_flips.total) == (1, 4)
    assert (x.wording_flips.count, x.wording_flips.total) == (1, 3)
    assert (x.opposite_turns.count, x.opposite_turns.total) == (2, 3)


def test_replies_that_are_equal_or_unreadable_are_said(tmp_path: Path):
    constitution = rules("good", "evil")
    with pytest.raises(StageError, match="all 30 requests have no two different replies"):
        stressed(constitution, FakeEngine(reply=lambda request: "The same."), tmp_path / "same")
    with pytest.raises(StageError, match="all 60 judgements of fake can't be read"):
        stressed(constitution, FakeEngine(answer=lambda query: []), tmp_path / "mute")


# --- Requests ------------------------------------------------------------------------------------------------------


def test_pairs_are_of_principles_for_the_same_prompts_and_all_take_part():
    constitution = rules("red-apple", "red-apples", "blue-sky", "green-tree", "old")
    help_only = constitution.principles[-1].model_copy(update={"tags": ["helpfulness"]})
    constitution = constitution.model_copy(update={"principles": [*constitution.principles[:-1], help_only]})
    assert [(one.id, other.id) for one, other in choose_pairs(constitution, 1)] == [("red-apple", "red-apples")]
    first_two = {rule.id for two in choose_pairs(constitution, 2) for rule in two}
    assert first_two == {"red-apple", "red-apples", "blue-sky", "green-tree"}
    assert len(choose_pairs(constitution, 100)) == 6, "the principle for other prompts is in no pair"


def test_requests_are_written_where_they_are_new_and_drawn_where_not(tmp_path: Path):
    texts = ["How do I pick a lock?", "Where do I buy a lock?", "Paint the barn.", "Who sings?"]
    prompts = [
        Prompt(id=text, pool="red_team", kind="k", split="train", messages=[Message(role="user", content=text)])
        for text in texts
    ]
    constitution = rules("lock", "buy")
    pairs = choose_pairs(constitution, 1)
    drawn = draw(constitution, pairs, prompts)
    assert drawn["lock", "buy"][0] == "Where do I buy a lock?"
    answer = "1. Tell me of locksmiths.\n2. Tell me of locksmiths!\n3. Where do I buy a lock?\nNo number"
    engine = FakeEngine(reply=lambda request: answer)
    rows = write(pairs, drawn, 3, engine, WriteConfig(), 0, FakeLogbook(tmp_path))
    assert [(row.request, row.source) for row in rows] == [
        ("Tell me of locksmiths.", "written"),
        (drawn["lock", "buy"][0], "drawn"),
        (drawn["lock", "buy"][1], "drawn"),
    ]


def test_given_replies_are_compared_as_they_are(tmp_path: Path):
    file = tmp_path / "mine.jsonl"
    lines = [
        {"first": "good", "second": "evil", "request": "Go?", "reply_first": f"Yes {n}.", "reply_second": f"No {n}."}
        for n in range(25)
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    constitution = rules("good", "evil")
    engine = Reader(planted)
    result = stressed(constitution, engine, tmp_path / "logs", rows=read_tradeoffs(str(file), constitution))
    assert result.found.contradictions == [("good", "evil")]
    assert all("~" in row_id for row_id in engine.asked), "no reply is sampled"


def test_every_wording_of_a_principle_says_what_it_asks_for():
    [rule] = rules("kind").principles
    asked = {how: made.preference_question for how, made in worded(rule).items()}
    assert asked[OWN] == rule.preference_question and rule.title in asked["title"]
    assert rule.revision_request in asked["revision"] and "opposite" in asked[OPPOSITE]
