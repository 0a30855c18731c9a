"""What a server refuses: it is a result, asked in another way, or the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.core.errors import StageError
from pipeline.engines.base import Completion, Failure
from pipeline.records import Message
from tests.echo_server import Change, Server, answers, ask, engine, refused, sent, usual_answer, which


def test_a_refused_request_is_its_result_and_the_run_goes_on(url: str):
    Server.change = refused("It was filtered.", lambda body: body["messages"][-1]["content"] == "q1")
    done = answers(engine(url), *(ask(i) for i in range(3)))
    assert [(c.finish, c.text) for c in done] == [("stop", "echo q0"), ("refused", ""), ("stop", "echo q2")]
    assert len(Server.seen) == 3, "a refusal is not asked again"
    Server.change = refused("It was filtered.", lambda body: True)
    [answer] = answers(engine(url), which(1))
    assert answer.refused and not answer.is_readable


def test_a_request_beyond_the_context_is_not_counted_as_refused(url: str):
    Server.change = refused("This model's maximum context length is 512 tokens. However, you requested 900 tokens.")
    [completion, answer] = answers(engine(url), ask(1), which(2))
    assert completion.finish == "too_long" and not answer.refused and not answer.is_readable


@pytest.mark.parametrize(("status", "stops"), [(413, False), (422, False), (401, True), (403, True), (404, True)])
def test_only_a_refusal_of_the_content_lets_the_run_go_on(url: str, status: int, stops: bool):
    Server.change = sent((status, {"detail": [{"loc": ["body", "messages"], "msg": "is too long"}]}))
    if stops:
        named = "base_url" if status == 404 else "OPENAI_API_KEY"
        with pytest.raises(StageError, match=rf"body\.messages: is too long.*{named}"):
            answers(engine(url), ask(1))
    else:
        assert answers(engine(url), ask(1))[0].finish == "refused"
    assert len(Server.seen) == 1


def test_one_forbidden_request_among_others_does_not_stop_the_run(url: str):
    """A firewall before a server may forbid a single text."""
    Server.change = lambda body, answer: (403, b"<html>no") if body["seed"] == 5 else answer
    done = answers(engine(url, "engine.max_parallel=1", "engine.max_retries=1"), *(ask(i) for i in range(8)))
    assert [type(result) for result in done] == [Completion] * 5 + [Failure] + [Completion] * 2


def test_a_server_that_refuses_everything_stops_the_run(url: str):
    Server.change = refused("The model is for embeddings.")
    with pytest.raises(StageError, match=r"each of the first 20 requests \(The model is for embeddings"):
        answers(engine(url), *(ask(i) for i in range(24)))


def system_turn(body: dict[str, Any]) -> bool:
    return bool(body["messages"][0]["role"] == "system")


FALLBACKS: dict[str, tuple[Change, Callable[[dict[str, Any]], bool]]] = {
    "system turn": (refused("System role not supported", system_turn),
                    lambda body: body["messages"] == [{"role": "user", "content": "Be good.\n\nq1"}]),
    "max_tokens": (refused("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                           lambda body: "max_tokens" in body),
                   lambda body: body["max_completion_tokens"] == 5 and body["temperature"] == 0.5),
    "seed": (refused("Extra inputs are not permitted", lambda body: "seed" in body, param="seed"),
             lambda body: "seed" not in body and body["max_tokens"] == 5),
    "temperature": (refused("'temperature' does not support 0.5", lambda body: "temperature" in body),
                    lambda body: "temperature" not in body and body["seed"] == 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", FALLBACKS)
def test_what_a_server_does_not_take_is_left_out_from_then_on(url: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.engines.sender.warn", warnings.append)
    Server.change, is_adapted = FALLBACKS[kind]
    tested = engine(url)
    for _ in range(2):
        [done] = answers(tested, ask(1, Message(role="system", content="Be good.")))
        assert done.finish == "stop"
    assert len(Server.seen) == 3 and is_adapted(Server.seen[1]) and is_adapted(Server.seen[2])
    assert len(warnings) == (kind in ("seed", "temperature"))


def test_fewer_logprobs_are_asked_for_where_twenty_are_too_many(url: str):
    Server.change = refused("top_logprobs must be at most 5", lambda body: body.get("top_logprobs", 0) > 5)
    assert answers(engine(url), which(1))[0].logprobs == [-0.2, -3.0]


def test_nothing_is_learnt_from_a_refusal_that_stays(url: str):
    Server.change = refused("The system prompt was filtered.")
    tested = engine(url)
    answers(tested, ask(1, Message(role="system", content="Be good.")))
    Server.change = sent(usual_answer({"messages": [{"content": ""}]}))
    answers(tested, ask(1, Message(role="system", content="Be good.")))
    assert Server.seen[-1]["messages"][0]["role"] == "system"
