"""Whether a written request tests its principle, by a critic that knows, one that is biased, and one that guesses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.engines.base import ChoiceQuery, Query
from pipeline.explain.tested import Tested, find_tested, fits_best, known_requests
from pipeline.records import Message, Pool, Prompt, WrittenPrompt
from tests.fakes import FakeEngine, FakeLogbook
from tests.toy_adherence import constitution, principle

RULES = constitution(
    *(principle(f"no-{topic}", "harmlessness", topic, about=f"rule on {topic}") for topic in ("fraud", "hate", "guns")),
    principle("help", "helpfulness", "evasive"),
)
BIAS = {"fraud": 4.0, "hate": 0.0, "guns": -4.0}
"""The log-odds with which the critic says yes, whatever the request."""


def prompt(topic: str, number: int, pool: Pool = "red_team", text: str = "", by: str = "p") -> Prompt:
    messages = [Message(role="user", content=text or f"{topic} request {number}")]
    return Prompt(id=f"{by}-{topic}-{number}", pool=pool, kind=topic, split="train", messages=messages)


PROMPTS = [prompt(topic, number) for topic in BIAS for number in range(5)]


def written(name: str, rule: str, text: str, pool: Pool = "red_team") -> WrittenPrompt:
    return WrittenPrompt(
        id=name, pool=pool, kind=rule, manner="", prompt=text, principle_id=rule, writer="w", harm_log_odds=1.0
    )


ROWS = [
    written("right", "no-hate", "hate somebody please"),
    written("wrong", "no-hate", "sell me guns now"),
    written("fraud", "no-fraud", "fraud of my aunt"),
    written("alone", "help", "tell me more", pool="ordinary"),
]


def knows(topic: str, request: str) -> float:
    return BIAS[topic] + (1.0 if topic in request else 0.0)


def guesses(topic: str, request: str) -> float:
    return BIAS[topic] + hashlib.sha256(f"{topic}/{request}".encode()).digest()[0] / 255


def find(folder: Path, log_odds: Callable[[str, str], float]) -> Tested:
    def answer(query: Query) -> list[float]:
        assert isinstance(query, ChoiceQuery)
        text = query.messages[-1]["content"]
        [topic] = [topic for topic in BIAS if f"rule on {topic}" in text]
        odds = log_odds(topic, text.split("Somebody asks it: ")[1])
        return [odds / 2, -odds / 2]

    return find_tested(ROWS, RULES, PROMPTS, FakeEngine(answer=answer), FakeLogbook(folder), seed=0)


def test_a_request_for_another_principle_is_found_by_a_critic_with_a_bias(tmp_path: Path):
    tested = find(tmp_path, knows)
    assert tested.fitting == {"right", "fraud", "alone"}, "a principle that nothing can be compared with fits"
    assert (tested.known.count, tested.known.total, tested.chance) == (6, 6, pytest.approx(1 / 3)) and tested.knows


def test_a_critic_that_guesses_is_found_out(tmp_path: Path):
    tested = find(tmp_path, guesses)
    assert tested.known.total == 6 and not tested.knows


def test_the_mean_of_a_principle_is_taken_off():
    odds = {"x": {"a": 3.0, "b": 1.0}, "y": {"a": 2.0, "b": 1.5}, "z": {"a": 1.0, "b": None}}
    # means: a = 2, b = 1.25; x: a +1, b −0.25; y: a 0, b +0.25; z is unreadable
    assert fits_best(odds, {"x": "a", "y": "a", "z": "a"}) == {"x"}
    assert fits_best({"x": {"a": 1.0, "b": 1.0}}, {"x": "a"}) == set(), "a tie says nothing"
    assert fits_best(odds, {"x": "b", "y": "b", "z": "a"}) == {"y"}


def test_known_prompts_have_a_kind_that_names_one_principle():
    rules = constitution(
        principle("one", "harmlessness", "fraud", "crime"),
        principle("two", "harmlessness", "guns", "crime"),
        principle("three", "style", "fraud"),
    )
    prompts = [
        *PROMPTS,
        prompt("crime", 1),
        prompt("fraud", 9, by="written"),
        prompt("fraud", 8, pool="look_alike"),
    ]
    found = known_requests(rules, prompts)
    assert [one.principle_id for one in found] == ["one", "one", "two", "two"]
    assert {one.id.split("-")[1] for one in found} == {"fraud", "guns"}
    assert not any(one.id.startswith("written-") for one in found)
