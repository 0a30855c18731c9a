"""What the engine for servers makes of answers, slow servers and failed requests, against a server of our own."""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.cache import RecordLog
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.log import Usage
from pipeline.engines.base import Failure
from pipeline.engines.chat_server import RefusedError, ServerError, error_of, read_reply, seconds_to_wait
from pipeline.engines.prompts import choice_logprobs
from pipeline.engines.worklist import generate_all, score_all
from pipeline.records import Message
from tests.echo_server import Change, Server, answers, ask, config, engine, said, sent, usual_answer, which, without
from tests.fakes import FakeLogbook


def test_replies_come_back_by_id_and_survive_a_few_failures(url: str):
    Server.failures_left, Server.cuts_left = 1, 1
    done = answers(engine(url), *(ask(i) for i in range(3)))
    assert [(c.id, c.text, c.finish, c.num_tokens) for c in done] == [
        (str(i), f"echo q{i}", "stop", 2) for i in range(3)
    ]
    assert {body["seed"] for body in Server.seen} == {0, 1, 2} and Server.seen[0]["temperature"] == 0.5


REPLIES: dict[str, tuple[Change, str, str, int]] = {
    "parts": (said([{"type": "thinking", "thinking": []}, {"type": "text", "text": "A "}, {"text": "b"}]),
              "A b", "stop", 2),
    "null content": (said(None), "", "stop", 2),
    "only thoughts of a parser": (said(None, "stop", reasoning_content="Hmm."), "", "length", 2),
    "thoughts of a parser": (said("Yes.", "stop", reasoning="Hmm."), "Yes.", "stop", 2),
    "thoughts": (said("<think>no</think>\nYes."), "Yes.", "stop", 2),
    "half a thought": (said("<think>no"), "", "length", 2),
    "cut off": (said("Yes. And", "length"), "Yes. And", "length", 2),
    "filtered": (said("", "content_filter"), "", "refused", 2),
    "filtered midway": (said("Yes. And", "content_filter"), "Yes. And", "length", 2),
    "no reason": (said("Yes.", None), "Yes.", "stop", 2),
    "unknown reason": (said("Yes.", "eos"), "Yes.", "stop", 2),
    "half a character": (said("a\ud83d \0b"), "a\ufffd \ufffdb", "stop", 2),
    "no usage": (without("usage"), "echo q1", "stop", 0),
    "empty usage": (without("usage", "completion_tokens"), "echo q1", "stop", 0),
    "another content type": (lambda body, answer: json.dumps(answer).encode(), "echo q1", "stop", 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPLIES)
def test_every_reply_is_read(url: str, kind: str):
    Server.change, text, finish, num_tokens = REPLIES[kind]
    question = ask(1, Message(role="user", content="half \ud83d"))  # it is sent, too
    [done] = answers(engine(url), question)
    assert (done.text, done.finish, done.num_tokens) == (text, finish, num_tokens)
    assert len(Server.seen) == 1


PASSING: dict[str, tuple[Change, str]] = {
    "a page": (sent(b"<!doctype html><html>welcome"), "no JSON: '<!doctype html><html>welcome'"),
    "half a JSON": (sent(b'{"choices": [{"inde'), "no JSON"),
    "a list": (sent([1]), "has no reply: '\\[1\\]'"),
    "nothing": (sent(b""), "an empty answer"),
    "no choices": (without("choices"), "has no reply"),
    "empty choices": (without("choices", value=[]), "has no reply"),
    "no message": (without("choices", 0, "message"), "has no reply"),
    "a number": (said(7), "is no text"),
    "an error with status 200": (sent({"error": {"message": "overloaded", "code": 503}}), "overloaded"),
    "an error beside no choices": (sent({"choices": None, "error": {"message": "slow", "code": 429}}), "slow"),
    "an error in words": (sent({"error": "model is loading"}), "model is loading"),
    "a reply that is broken off": (said("Yes", "abort"), "broke the reply off \\(abort\\)"),
    "an error in a choice": (without("choices", 0, "error", value={"message": "upstream", "code": 502}), "upstream"),
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_is_no_reply_is_asked_again_and_then_one_sentence(url: str, kind: str):
    broken, sentence = PASSING[kind]
    Server.change = lambda body, answer: answer if len(Server.seen) > 2 else broken(body, answer)
    assert answers(engine(url), ask(1))[0].text == "echo q1"
    Server.change, Server.seen = broken, []
    [failure] = answers(engine(url, "engine.max_retries=1"), ask(1))
    assert isinstance(failure, Failure) and re.search(sentence, failure.reason) and len(failure.reason) < 450
    assert len(Server.seen) == 2


ODD: list[Any] = [
    None, 0, True, 1.5, float("nan"), 10**30, "", "text", "\ud83d", [], [None], ["a"], {}, {"text": 3}, [{"text": 3}],
    {"message": 3}, {"message": [1, {"loc": 5}]}, {"code": "x"}, {"code": [1]}, {"detail": [{"loc": [1], "msg": {}}]},
    {"type": "invalid_request_error", "param": 4},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, part in parts:
        yield from places(part, (*path, step))


def test_no_odd_value_at_any_place_is_a_traceback():
    usual = usual_answer({"messages": [{"content": "q"}], "logprobs": True}) | {"error": None}
    for path in places(usual):
        for odd in ODD:
            changed = without(*path, value=odd)({}, copy.deepcopy(usual)) if path else odd
            with suppress(RefusedError, ServerError):
                reply = read_reply(json.dumps(changed))
                assert reply.text.encode() is not None and isinstance(reply.num_tokens, int)
                choice_logprobs(("A", "B"), reply.listed or [])
            assert str(error_of(400, json.dumps(changed))).encode() is not None


def test_a_server_that_is_too_slow_is_a_failure(url: str):
    Server.change = lambda body, answer: time.sleep(0.3) or answer
    [failure] = answers(engine(url, "engine.max_retries=0", "engine.timeout_seconds=0.1"), ask(1))
    assert failure.reason == "no answer within 0.1 s"


def drips(handler: Server) -> None:
    """Sends one byte of an answer every 50 ms."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def test_a_server_that_never_ends_its_answer_is_too_slow(url: str):
    Server.take_over = staticmethod(drips)  # type: ignore[assignment]
    [failure] = answers(engine(url, "engine.max_retries=0", "engine.timeout_seconds=0.3"), ask(1))
    assert failure.reason == "no answer within 0.3 s"


def test_a_failed_request_loses_only_itself_and_the_next_run_asks_only_for_it(url: str, tmp_path: Path):
    requests, broken = [ask(i) for i in range(4)], sent((500, {"error": {"message": "out of memory"}}))
    Server.change = lambda body, answer: broken(body, answer) if body["seed"] == 2 else answer
    sentence = r"^1 of 4 requests to m failed \(1 × HTTP 500: out of memory\); the others are kept: run the same"
    with pytest.raises(StageError, match=sentence):
        generate_all(engine(url, "engine.max_retries=0"), "", requests, FakeLogbook(tmp_path), "log")
    log = RecordLog(tmp_path, "log")
    assert set(log.rows) == {"0", "1", "3"} and set(log.failures) == {"2"}
    Server.change, Server.seen = (lambda body, answer: answer), []
    done = generate_all(engine(url), "", requests, FakeLogbook(tmp_path), "log")
    assert [body["seed"] for body in Server.seen] == [2] and done["2"].text == "echo q2"
    assert not RecordLog(tmp_path, "log").failures


def test_a_run_may_go_on_with_a_share_of_failures(url: str, tmp_path: Path):
    requests, broken = [ask(i) for i in range(4)], sent((500, b"broken"))
    Server.change = lambda body, answer: broken(body, answer) if body["seed"] == 2 else answer
    tested = engine(url, "engine.max_retries=0", "engine.max_failed_share=0.25")
    done = generate_all(tested, "", requests, FakeLogbook(tmp_path), "log")
    assert done["2"].finish == "failed" and done["2"].why_unanswered and done["1"].text == "echo q1"
    Server.change = broken
    tested = engine(url, "engine.max_retries=0", "engine.max_failed_share=1")
    unasked = score_all(tested, "", [which(i) for i in range(4)], FakeLogbook(tmp_path / "x"), "log")
    assert all(answer.failed and not answer.is_readable for answer in unasked.values())


def test_a_slow_request_delays_no_other(url: str):
    """With batches, the second and third of four would wait for the first."""
    others, order = threading.Event(), list[str]()

    def change(body: dict[str, Any], answer: dict[str, Any]) -> Any:
        if body["seed"] == 0:
            others.wait(20)
        return answer

    Server.change = change
    for result in engine(url, "engine.max_parallel=2").answers([ask(i) for i in range(6)]):
        order.append(result.id)
        if len(order) == 5:
            others.set()
    assert order == ["1", "2", "3", "4", "5", "0"]


def test_no_more_requests_are_under_way_than_allowed(url: str):
    under_way, most = [0], [0]

    def change(_: dict[str, Any], answer: dict[str, Any]) -> Any:
        with lock:
            under_way[0] += 1
            most[0] = max(*most, *under_way)
        time.sleep(0.1 if most[0] < 3 else 0)
        with lock:
            under_way[0] -= 1
        return answer

    lock, Server.change = threading.Lock(), change
    answers(engine(url, "engine.max_parallel=3"), *(ask(i) for i in range(20)))
    assert most == [3]


@pytest.mark.parametrize(("status", "order"), [(503, ["1", "2", "3", "0"]), (429, ["0", "1", "2", "3"])])
def test_a_request_that_waits_delays_others_only_under_a_rate_limit(url: str, status: int, order: list[str]):
    waiting = (status, {"error": {"message": "slow down"}})
    Server.headers_too = {"Retry-After": "1.5"}
    Server.change = lambda body, answer: waiting if body["seed"] == 0 and len(Server.seen) == 1 else answer
    started = time.monotonic()
    answered = [result.id for result in engine(url, "engine.max_parallel=1").answers([ask(i) for i in range(4)])]
    assert answered == order and time.monotonic() - started >= 1.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("Sat, 28 Nov 2026 10:00:30 GMT", 30.0), ("soon", None), ("", None),
     ("nan", None), ("Sat, 28 Nov 2026 10:00:30 +99999999999999999999", None)],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str, seconds: float | None):
    now = datetime(2026, 11, 28, 10, tzinfo=UTC)
    assert seconds_to_wait({"retry-after": value}, now) == seconds
    assert seconds_to_wait({}, now) is None


@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "nonsense://127.0.0.1:1"), ("SSL_CERT_FILE", "/nowhere/cert.pem")]
)
def test_what_the_environment_makes_impossible_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    """It is not raised by a request, so that whoever waits for answers would wait for ever."""
    monkeypatch.setenv(name, value)
    tested = engine("http://example.invalid/v1")
    with pytest.raises(ConfigError, match=r"^no connection to the server of m can be made .* unset ALL_PROXY"):
        list(tested.answers([ask(0)]))


def test_tokens_and_money_are_counted(url: str, tmp_path: Path):
    logbook, price = FakeLogbook(tmp_path), "engine.price_per_million_tokens={input: 2, output: 10}"
    tested = engine(url, price)
    generate_all(tested, "", [ask(i) for i in range(4)], logbook, "log")
    score_all(tested, "", [which(i) for i in range(2)], logbook, "choices")
    assert logbook.meter.usage == {"m": Usage(6, 6, 12, pytest.approx(6 * 2e-6 + 12 * 10e-6))}  # type: ignore[arg-type]
    other = FakeLogbook(tmp_path)
    generate_all(engine(url), "", [ask(i) for i in range(4)], other, "log")
    assert other.meter.usage == {"m": Usage(4, 4, 8, None)}, "what an earlier run was answered counts, too"
    assert config(url, price).key() == config(url).key()
