"""How the engine for servers reads the probabilities of choices, in the layouts that servers have."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.cache import RecordLog
from pipeline.core.errors import StageError
from pipeline.engines.base import NEVER
from pipeline.engines.prompts import choice_logprobs
from pipeline.engines.worklist import score_all
from tests.echo_server import Change, Server, answers, engine, which, without
from tests.fakes import FakeLogbook


def test_choices_are_read_from_the_likeliest_tokens(url: str):
    [answer] = answers(engine(url), which(1))
    assert answer.logprobs == [-0.2, -3.0], "an unlisted choice is bounded by the least likely listed token"


def test_an_unlisted_choice_has_at_most_what_the_others_leave():
    assert choice_logprobs(("A", "B"), [("A", -0.1)]) == pytest.approx([-0.1, -2.3522], abs=1e-4)  # log(1 - e^-0.1)
    assert choice_logprobs(("A", "B"), [("C", -0.1)]) == [NEVER, NEVER]


UNLISTED: dict[str, Change] = {
    "null": without("choices", 0, "logprobs"),
    "no content": without("choices", 0, "logprobs", "content"),
    "no list": without("choices", 0, "logprobs", "content", 0, "top_logprobs"),
    "not numbers": without("choices", 0, "logprobs", "content", 0, "top_logprobs", value=[{"token": "A"}, 3]),
}


@pytest.mark.parametrize("kind", UNLISTED)
def test_a_server_without_logprobs_is_named_after_a_few_queries(url: str, kind: str):
    Server.change = UNLISTED[kind]
    assert not answers(engine(url), which(0))[0].is_readable
    with pytest.raises(StageError, match=r"of m returns no log-probabilities.*vLLM"):
        answers(engine(url), *(which(i) for i in range(8)))


def test_queries_without_logprobs_are_not_logged_before_the_run_stops(url: str, tmp_path: Path):
    """Otherwise the next run, with a better server, would not ask them again."""
    Server.change = UNLISTED["null"]
    with pytest.raises(StageError):
        score_all(engine(url), "", [which(i) for i in range(8)], FakeLogbook(tmp_path), "log")
    assert not RecordLog(tmp_path, "log").rows


def test_a_logprob_above_zero_is_zero(url: str):
    top = [{"token": "A", "logprob": 1000}, {"token": "B", "logprob": float("nan")}]
    Server.change = without("choices", 0, "logprobs", "content", 0, "top_logprobs", value=top)
    assert answers(engine(url), which(1))[0].logprobs == pytest.approx([0.0, -13.8155], abs=1e-4)  # log(1e-6)


def test_logprobs_in_the_older_layout_are_read(url: str):
    older = {"tokens": ["A"], "token_logprobs": [-0.1], "top_logprobs": [{"A": -0.5, "B": -1.0}]}
    Server.change = without("choices", 0, "logprobs", value=older)
    assert answers(engine(url), which(1))[0].logprobs == [-0.5, -1.0]
