"""Choices by votes, where a server gives no log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.chain.compose import compose_config
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError
from pipeline.engines.base import Answer, Ask, ChoiceQuery, Completion, Failure, Request, Weights, chooser, open_engine
from pipeline.engines.base import StreamingEngine as Streaming
from pipeline.engines.votes import VotingEngine, named_choice
from pipeline.engines.worklist import generate_all, score_all
from pipeline.records import Message
from tests.fakes import FakeLogbook

Result = Completion | Answer | Failure


class Writer(Streaming):
    """Replies by a given function, in the opposite order; None is a failure."""

    name = "writer"

    def __init__(self, reply: Callable[[Request], str | None]) -> None:
        self._reply = reply
        self.asked: list[Request] = []

    def answers(self, asks: Sequence[Ask]) -> Iterator[Result]:
        for ask in reversed(asks):
            assert isinstance(ask, Request)
            self.asked.append(ask)
            text = self._reply(ask)
            if text is None:
                yield Failure(id=ask.id, reason="no answer")
            else:
                yield Completion(id=ask.id, text=text, num_tokens=1, finish="stop")


def which(row_id: str) -> ChoiceQuery:
    messages = [Message(role="user", content="Which?")]
    return ChoiceQuery(id=row_id, messages=messages, opening="(", choices=("A", "B"))


def test_the_share_of_votes_is_the_probability(tmp_path: Path):
    texts = iter(["A", "(A)", "A.", "B", "I can't say."] * 2)
    inner = Writer(lambda request: next(texts))
    queries, logbook = [which("q"), which("r")], FakeLogbook(tmp_path)
    answers = score_all(VotingEngine(inner, 5), "", queries, logbook, "log")
    for answer in answers.values():
        assert answer.logprobs == pytest.approx([math.log(4 / 7), math.log(2 / 7)])
    assert len(inner.asked) == len({ask.seed for ask in inner.asked}) == 10
    assert logbook.meter.num_calls == logbook.meter.usage["writer"].num_requests == 10, "each vote is a call"
    assert logbook.meter.num_tokens_written == 10
    assert all(ask.temperature == 1.0 and ask.messages[-1]["content"].endswith("only A or B.") for ask in inner.asked)


def test_an_answer_without_a_readable_vote_is_unreadable_and_a_failed_vote_fails_it():
    [unreadable] = VotingEngine(Writer(lambda request: "Hm."), 3).answers([which("q")])
    assert isinstance(unreadable, Answer) and not unreadable.is_readable
    [failed] = VotingEngine(Writer(lambda request: None if request.id.endswith("#1") else "A"), 3).answers([which("q")])
    assert failed == Failure(id="q", reason="no answer")


def test_text_is_generated_as_ever(tmp_path: Path):
    request = Request(id="x", messages=[], seed=0, max_new_tokens=1, temperature=0.0)
    tested = VotingEngine(Writer(lambda r: "A"), 3)
    assert generate_all(tested, "", [request], FakeLogbook(tmp_path), "log")["x"].text == "A"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("A", "A"), ("(B)", "B"), ("b", "B"), ("**A**", "A"), ("A: it is kinder", "A"), ("A\nBecause B lies", "A"),
        ("The better reply is (B).", "B"), ("A better reply is B", None), ("(A) or (B)?", None), ("AB", None),
    ],
)  # fmt: skip
def test_only_a_reply_that_names_one_choice_is_a_vote(text: str, choice: str | None):
    assert named_choice(text, ("A", "B")) == choice


def test_words_are_choices_too():
    assert named_choice("Complied.", (" refused", " complied")) == " complied"


def test_the_records_say_that_votes_decided():
    config: Any = compose_config(["engine=server", "engine.model=m", "preferences=ab", "engine.votes=5"]).engine
    engine = open_engine(config, Weights(path="", name=""), LaunchConfig())
    assert chooser(engine) == "m (5 votes)" and engine.name == "m"
    with pytest.raises(ConfigError, match=r"engine\.votes is for engine\.prompts=chat"):
        compose_config(["engine=serve", "engine.prompts=tokens", "preferences=ab", "engine.votes=5"])
