"""Answers of the critic and the labeller that can't be used: counted, a warning, or the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.core.errors import StageError
from pipeline.engines.base import Answer, Completion, Finish, Query, Request
from tests.fakes import FakeEngine

Tiny = Callable[..., Config]
UNREADABLE = [-100.0, -100.0]


class Critic(FakeEngine):
    """Ends each answer for a given reason."""

    name = "critic"

    def __init__(self, finish: Callable[[int], Finish | None]) -> None:
        super().__init__()
        self._finish = finish

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        found = [(done, self._finish(len(self.asked) + i)) for i, done in enumerate(super().generate(batch))]
        return [Completion(**{**vars(done), "finish": end, "text": ""}) if end else done for done, end in found]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr("pipeline.core.counts.warn", said.append)
    return said


def use(monkeypatch: pytest.MonkeyPatch, stage: str, engine: Any) -> None:
    monkeypatch.setattr(f"pipeline.stages.{stage}.feedback_engine", lambda *_: engine)


def test_some_unusable_critiques_are_counted_and_warned_of(
    tiny: Tiny, warnings: list[str], monkeypatch: pytest.MonkeyPatch
):
    ends: dict[int, Finish] = {2: "refused", 3: "too_long"}  # the second and third answers, both critiques
    use(monkeypatch, "critique", Critic(lambda number: ends.get(number - 1)))
    metrics = run(tiny("until=critique")).stages["critique"].manifest.metrics
    assert metrics["num_refused_by_the_server"] == metrics["num_too_long_for_the_context"] == 1
    assert metrics["num_unusable_answers_of_the_critic"] == 2
    [warning] = [said for said in warnings if "of the critic" in said]
    assert "answers of the critic critic can't be used (1 refused by the server, 1 too long for its context)" in warning


def test_a_revision_that_copies_the_request_is_counted_and_left_out(
    tiny: Tiny, warnings: list[str], monkeypatch: pytest.MonkeyPatch
):
    def answer(request: Request) -> str:
        asked = request.messages[-1]["content"]
        return asked.split("Request: ")[-1] if request.id.endswith("/revision") else "It harms people."

    use(monkeypatch, "critique", FakeEngine(answer))
    metrics = run(tiny("until=critique")).stages["critique"].manifest.metrics
    assert metrics["num_revisions"] == 0 and metrics["num_copies_or_loops"] > 1
    assert metrics["num_unusable_answers_of_the_critic"] == metrics["num_copies_or_loops"]
    [warning] = [said for said in warnings if "of the critic" in said]
    assert "only a copy of the request" in warning


def test_first_replies_that_can_not_be_used_stop_the_run(tiny: Tiny):
    """The constitution's own rows would let the run go on, and nothing of the model would be in it."""
    with pytest.raises(
        StageError, match=r"all 5 first replies to be revised can't be used .* raise critique\.max_reply"
    ):
        run(tiny("critique.max_reply_tokens=1"))


def test_pairs_that_are_all_left_out_stop_the_run(tiny: Tiny):
    with pytest.raises(StageError, match=r"all 8 pairs are left out \(8 with an empty reply"):
        run(tiny("preferences.max_reply_tokens=1", "until=preferences"))


def test_a_critic_without_a_usable_answer_stops_the_run_before_the_next_round(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
):
    critic = Critic(lambda number: "stop")
    use(monkeypatch, "critique", critic)
    with pytest.raises(StageError, match=r"all \d+ answers of the critic .*empty.*use another critic.*delete .*work"):
        run(tiny("until=critique", "critique.num_rounds=3"))
    assert all(name.endswith("/1/critique") for name in critic.asked)


class Labeller(FakeEngine):
    """Refuses the queries whose number is in a list."""

    def __init__(self, refuses: Callable[[int], bool]) -> None:
        super().__init__(answer=lambda query: [-0.2, -2.0])
        self._refuses = refuses

    def score(self, batch: Sequence[Query]) -> list[Answer]:
        found = super().score(batch)
        first = len(self.asked) - len(batch)
        return [
            Answer(id=a.id, logprobs=UNREADABLE, refused=True) if self._refuses(first + i) else a
            for i, a in enumerate(found)
        ]


@pytest.mark.parametrize(("num_refused", "warned"), [(0, 0), (1, 1)])
def test_some_unreadable_judgements_are_counted_and_warned_of(
    tiny: Tiny, warnings: list[str], monkeypatch: pytest.MonkeyPatch, num_refused: int, warned: int
):
    use(monkeypatch, "preferences", Labeller(lambda number: number < num_refused))
    config = tiny("preferences=ab", "preferences.num_checked=0", "until=preferences")
    metrics = run(config).stages["preferences"].manifest.metrics
    assert metrics["num_refused_by_the_server"] == metrics["num_parse_failures"] == num_refused
    found = [text for text in warnings if "labeller" in text]
    assert len(found) == warned and all("(the server refused 1 questions)" in text for text in found)


def test_a_labeller_without_a_readable_answer_stops_the_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, "preferences", Labeller(lambda number: True))
    with pytest.raises(StageError, match=r"all \d+ judgements of the labeller fake can't be read.*delete .*work"):
        run(tiny("preferences=ab", "until=preferences"))


@pytest.mark.parametrize("by_place", [True, False])
def test_a_labeller_that_always_names_the_same_letter_is_warned_of(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, by_place: bool
):
    said: list[str] = []
    monkeypatch.setattr("pipeline.stages.preferences.warn", said.append)
    answers = FakeEngine(answer=lambda query: [-0.2, -2.0] if by_place or query.id.endswith("own") else [-2.0, -0.2])
    use(monkeypatch, "preferences", answers)
    settings = ["preferences=ab", "preferences.labeller.num_principles=2", "until=preferences"]
    metrics = run(tiny(*settings)).stages["preferences"].manifest.metrics
    assert metrics["order_flip_rate"] == float(by_place)
    number = metrics["num_judgements"]
    sentence = f"labeller fake chose the same letter in both orders in {number} of {number} judgements"
    assert sum(sentence in text for text in said) == by_place
