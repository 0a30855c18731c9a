"""The engine for servers, against a server of our own on this machine."""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from pipeline.chain.compose import compose_config
from pipeline.core.cache import RecordLog
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.log import Usage
from pipeline.engines.base import NEVER, ChoiceQuery, Completion, Failure, Request, Weights, open_engine
from pipeline.engines.chat_server import RefusedError, Reply, ServerError, error_of, read_reply, seconds_to_wait
from pipeline.engines.prompts import ChatPrompts, Post, choice_logprobs
from pipeline.engines.server import make_sender
from pipeline.engines.server_engine import ServerEngine
from pipeline.engines.worklist import generate_all, score_all
from pipeline.records import Message
from tests.fakes import FakeLogbook, JoinedServer

Change = Callable[[dict[str, Any], dict[str, Any]], Any]
"""(request, usual answer) → what the server sends: an object, bytes, or (status, object)."""


class Server(BaseHTTPRequestHandler):
    """Echoes the last turn. ``change`` makes another answer of it."""

    timeout = 10.0  # seconds, for a connection that sends nothing
    failures_left = 0
    cuts_left = 0
    headers_too: ClassVar[dict[str, str]] = {}
    take_over: ClassVar[Callable[[Server], None] | None] = None
    ports: ClassVar[list[int]] = []
    paths: ClassVar[list[str]] = []
    broken_port = 0
    root: ClassVar[str | tuple[str, ...]] = "/v1"
    change: ClassVar[Change]
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        here = self.server.server_address[1]
        Server.seen.append(body)
        Server.ports.append(int(here))
        Server.paths.append(self.path)
        if not self.path.startswith(Server.root):
            self.send_error(404)
            return
        if Server.failures_left > 0 or here == Server.broken_port:
            Server.failures_left -= 1
            self.send_error(503)
            return
        if Server.take_over is not None:
            Server.take_over(self)
            return
        changed = Server.change(body, usual_answer(body))
        status, content = changed if isinstance(changed, tuple) else (200, changed)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(content, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in Server.headers_too.items():
            self.send_header(name, value)
        self.end_headers()
        if Server.cuts_left > 0:
            Server.cuts_left -= 1
            data = data[:10]
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


def usual_answer(body: dict[str, Any]) -> dict[str, Any]:
    top = [{"token": " A", "logprob": -0.2, "bytes": None}, {"token": "(a", "logprob": -3.0, "bytes": None}]
    first = {"token": " A", "logprob": -0.2, "bytes": None, "top_logprobs": top}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": f" echo {body['messages'][-1]['content']}"},
        "logprobs": {"content": [first]} if body.get("logprobs") else None,
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("pipeline.engines.sender.FIRST_WAIT_SECONDS", 0.001)
    server = JoinedServer(("127.0.0.1", 0), Server)
    Server.failures_left, Server.cuts_left, Server.seen, Server.headers_too = 0, 0, [], {}
    Server.take_over, Server.ports, Server.paths, Server.broken_port, Server.root = None, [], [], 0, "/v1"
    Server.change = lambda body, answer: answer
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def config(url: str, *overrides: str) -> Any:
    options = ["engine=server", "preferences=ab", "engine.model=m", f"engine.base_url={url}", *overrides]
    return compose_config(options).engine


def engine(url: str, *overrides: str) -> ServerEngine:
    opened = open_engine(config(url, *overrides), Weights(path="", name=""), LaunchConfig())
    assert isinstance(opened, ServerEngine)
    return opened


def answers(tested: ServerEngine, *asks: Any) -> list[Any]:
    """The results in the order of the asks."""
    found = {result.id: result for result in tested.answers(asks)}
    assert len(found) == len(asks)
    return [found[ask.id] for ask in asks]


def ask(number: int, *before: Message) -> Request:
    messages = [*before, Message(role="user", content=f"q{number}")]
    return Request(id=str(number), messages=messages, seed=number, max_new_tokens=5, temperature=0.5)


def which(number: int) -> ChoiceQuery:
    messages = [Message(role="user", content="which?")]
    return ChoiceQuery(id=str(number), messages=messages, opening="(", choices=("A", "B"))


def said(content: Any, finish: str | None = "stop", **message: Any) -> Change:
    """A server whose reply is ``content``."""

    def change(_: dict[str, Any], answer: dict[str, Any]) -> Any:
        answer["choices"][0] |= {"finish_reason": finish, "message": {"content": content, **message}}
        return answer

    return change


def sent(content: Any) -> Change:
    """A server that sends ``content`` instead of an answer."""
    return lambda body, answer: content


def without(*path: Any, value: Any = None) -> Change:
    """A server whose answer has ``value`` at this place."""

    def change(_: dict[str, Any], answer: dict[str, Any]) -> Any:
        part: Any = answer
        for step in path[:-1]:
            part = part[step]
        part[path[-1]] = value
        return answer

    return change


def refused(sentence: str, when: Callable[[dict[str, Any]], bool] = lambda body: True, **error: Any) -> Change:
    """A server that refuses some requests with HTTP 400."""
    return lambda body, answer: (400, {"error": {"message": sentence, **error}}) if when(body) else answer


# --- Answers -------------------------------------------------------------------------------------------------------


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


# --- Choices -------------------------------------------------------------------------------------------------------


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


# --- Refusals ------------------------------------------------------------------------------------------------------


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


# --- Before a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["<think>", "<", "\n<think"])
def test_a_model_that_thinks_first_is_named_before_a_run_that_reads_choices(url: str, first: str):
    listed = [{"token": first, "logprob": -0.01, "bytes": None}, {"token": "Okay", "logprob": -5.0, "bytes": None}]
    Server.change = without("choices", 0, "logprobs", value={"content": [{**listed[0], "top_logprobs": listed}]})
    with pytest.raises(ConfigError, match=r"votes is 0, but the model of .* thinks before .*, or set judge\.votes=10"):
        config(url).reach("judge", reads_choices=True)
    config(url).reach("critic")  # it reads none
    listed.append({"token": "(A", "logprob": -6.0, "bytes": None})
    config(url).reach("judge", reads_choices=True)  # a letter is listed, so the model may answer with it


def test_one_token_is_asked_for_before_a_run(url: str):
    config(url).reach("engine")
    [body] = Server.seen
    assert body["max_tokens"] == 1 and body["model"] == "m"
    Server.change = refused("the model output limit was reached; use higher max_tokens", param="max_tokens")
    config(url).reach("engine")


def test_a_server_without_logprobs_is_named_before_a_run_that_reads_choices(url: str):
    config(url).reach("engine", reads_choices=True)
    assert Server.seen[-1]["top_logprobs"] == 20 and Server.seen[-1]["max_tokens"] == 1
    sentence = r"^judge\.votes is 0, but http.*/v1 returns no log-probabilities.* set judge\.votes=10, .*\.$"
    for change in (without("choices", 0, "logprobs"), refused("logprobs is not supported", lambda b: "logprobs" in b)):
        Server.change = change
        with pytest.raises(ConfigError, match=sentence):
            config(url).reach("judge", reads_choices=True)
        config(url).reach("critic")  # it reads none
        config(url, "engine.votes=10").reach("judge", reads_choices=True)


TROUBLES: dict[str, tuple[Change, str]] = {
    "path": (sent((404, b"<html>Not found")), r"^judge\.base_url is 'http.*/v1' and judge\.model is 'm'.*Not found"),
    "key": (sent((401, {"error": "bad key"})), r"^judge\.api_key_variable is 'OPENAI_API_KEY'.*bad key"),
    "model": (refused("no such model"), r"^judge\.model is 'm', .*no such model"),
    "page": (sent(b"<html>welcome"), r"^judge\.base_url is 'http.*<html>welcome.* ends in /v1"),
    "moved": (sent((301, b"<html>Moved")), r"^judge\.base_url is .* \(HTTP 301: .*\); give that address.*https"),
    "loading": (sent((503, {"error": {"message": "Loading model"}})), r"^judge\.base_url is .*Loading model"),
}


@pytest.mark.parametrize("kind", TROUBLES)
def test_a_server_that_does_not_answer_is_named_before_a_run(url: str, kind: str):
    Server.change, sentence = TROUBLES[kind]
    with pytest.raises(ConfigError, match=sentence):
        config(url).reach("judge")


def test_a_dead_server_is_named_before_a_run():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ConfigError, match=rf"engine\.base_url is '{url}'.* start the server"):
            config(url).reach("engine")


@pytest.mark.parametrize("key", ["sk-\n1", "ключ", "a b"])
def test_a_key_that_no_header_can_hold_is_named_but_not_shown(url: str, key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match=r"engine\.api_key_variable: OPENAI_API_KEY has") as raised:
        config(url).reach("engine")
    assert key not in str(raised.value)


def test_the_hosted_server_needs_a_key(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="which is not set in the environment"):
        config("null").reach("engine")


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_key_that_the_server_repeats_is_not_shown(url: str, status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    answer = {"error": {"message": "no key sk-secret", "code": 500 if status == 200 else status}}
    Server.change = lambda body, _: (status, answer)
    with pytest.raises(ConfigError, match=r"no key \*\*\*") as refused:
        config(url).reach("engine")
    assert "sk-secret" not in str(refused.value)
    if status in (200, 500):
        [failure] = answers(engine(url, "engine.max_retries=0"), ask(1))
        assert failure.reason == "HTTP 500: no key ***"


def test_a_password_in_an_address_is_not_shown():
    with pytest.raises(ConfigError, match=r"^engine\.base_url has more than an address in it; put a key") as raised:
        config("http://user:sk-secret@h/v1")
    assert "sk-secret" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    ["", "http://h:99999/v1", "http://h:x/v1", "http:///v1", "'http://h h/v1'", "http://h/v1/chat/completions"],
)
def test_odd_addresses_are_one_sentence(address: str):
    with pytest.raises(ConfigError, match=r"^engine\.base_url is '.*', which .*;? ?.*\.$"):
        config(address)


# --- Several servers -----------------------------------------------------------------------------------------------


@pytest.fixture
def other_url(url: str) -> Iterator[str]:
    """A second address of the same server. ``Server.hosts`` says where requests went."""
    server = JoinedServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def port(url: str) -> int:
    found = urlsplit(url).port
    assert found is not None
    return found


def several(*urls: str) -> str:
    return f"[{','.join(urls)}]"


def test_requests_go_to_the_server_with_the_fewest_under_way(url: str, other_url: str):
    Server.change = lambda body, answer: time.sleep(0.02) or answer
    done = answers(engine(several(url, other_url), "engine.max_parallel=2"), *(ask(i) for i in range(20)))
    assert all(isinstance(result, Completion) for result in done)
    shares = Counter(Server.ports)
    assert min(shares[port(url)], shares[port(other_url)]) >= 3 and shares.total() == 20


def test_the_others_do_the_work_of_a_server_that_fails(url: str, other_url: str):
    """It is set aside after a few failures, and no request fails because of it."""
    Server.broken_port = port(other_url)
    done = answers(engine(several(other_url, url), "engine.max_parallel=2"), *(ask(i) for i in range(60)))
    assert all(isinstance(result, Completion) for result in done)
    assert 5 <= Counter(Server.ports)[port(other_url)] <= 8


def test_a_server_that_was_set_aside_is_tried_again(url: str, other_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.engines.addresses.FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.engines.addresses.LONGEST_PAUSE_SECONDS", 0.05)
    Server.broken_port = port(other_url)

    def change(_: dict[str, Any], answer: dict[str, Any]) -> Any:
        time.sleep(0.01)
        if len(Server.seen) >= 60:  # the 60th itself may be one that failed
            Server.broken_port = 0
        return answer

    Server.change = change
    answers(engine(several(other_url, url), "engine.max_parallel=1"), *(ask(i) for i in range(120)))
    assert Counter(Server.ports[-20:])[port(other_url)] >= 5


def test_a_dead_server_stops_the_run_long_before_all_requests_have_failed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipeline.engines.addresses.FIRST_PAUSE_SECONDS", 0.05)
    Server.failures_left = 10**6
    tested = engine(url, "engine.patience_seconds=0.2")
    with pytest.raises(StageError, match=r"^No server of m answers any more \(HTTP 503: .*run the same command again"):
        generate_all(tested, "", [ask(i) for i in range(1000)], FakeLogbook(tmp_path), "log")
    assert len(Server.seen) < 200


def test_a_server_that_comes_back_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.engines.addresses.FIRST_PAUSE_SECONDS", 0.01)
    Server.failures_left = 12
    done = answers(engine(url), *(ask(i) for i in range(20)))
    assert all(isinstance(result, Completion) for result in done)


def test_the_address_may_lack_v1_or_have_a_slash(url: str, monkeypatch: pytest.MonkeyPatch):
    said_texts: list[str] = []
    monkeypatch.setattr("pipeline.engines.sender.say", said_texts.append)
    root = url.removesuffix("/v1")
    for written in (url, f"{url}/", root, f"{root}/"):
        assert answers(engine(written), ask(1))[0].text == "echo q1"
    assert set(Server.paths) == {"/v1/chat/completions"}
    Server.paths.clear()
    Server.root = "/gateway/v1"
    config(f"{root}/gateway").reach("engine")
    assert Server.paths == ["/gateway/chat/completions", "/gateway/v1/chat/completions"]
    assert said_texts[-1] == f"the API of {root}/gateway begins at {root}/gateway/v1."


def test_an_answer_beside_the_api_does_not_show_where_the_api_begins(url: str):
    """SGLang's /generate is beside /v1."""
    Server.root = ("/gateway/v1", "/gateway/generate")
    begun = f"{url.removesuffix('/v1')}/gateway"
    sender = make_sender(config(begun), "m", [begun])
    for post in (Post("/generate", {"messages": [{"content": "x"}]}, at_host=True), ChatPrompts("m").post(ask(1))):
        assert isinstance(sender.send_one(post), Reply)
    assert Server.paths == ["/gateway/generate", "/gateway/chat/completions", "/gateway/v1/chat/completions"]


def test_before_a_run_one_of_several_servers_must_answer(url: str, monkeypatch: pytest.MonkeyPatch):
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.engines.server.warn", warnings.append)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        config(several(dead, url)).reach("engine")
        assert [dead in text and "Connection refused" in text for text in warnings] == [True]
        with pytest.raises(ConfigError, match="Connection refused"):
            config(several(dead, f"{dead}/")).reach("engine")


def test_before_a_run_no_server_may_lack_the_model(url: str, other_url: str):
    """Otherwise its requests would fail one after the other."""
    Server.change = lambda body, answer: (404, {"error": {"message": "no m"}}) if Server.ports[1:] else answer
    with pytest.raises(ConfigError, match=rf"base_url is '{other_url}' and engine\.model is 'm'.*no m"):
        config(several(url, other_url)).reach("engine")


def test_the_name_of_a_model_may_have_slashes(url: str):
    assert answers(engine(url, "engine.model=org/model:8b"), ask(1))[0].text == "echo q1"
    assert Server.seen[0]["model"] == "org/model:8b"


def test_the_address_is_in_no_record_and_no_cache_key(url: str):
    assert engine(url).name == "m"
    assert config(url).key() == config("http://elsewhere:1/v1").key() == config(several(url, f"{url}/x")).key()
    assert config(url).key() != config(url, "engine.model_version=fp8").key()


@pytest.mark.parametrize(
    ("address", "trouble"),
    [("[]", "empty list"), ("[http://a/v1,http://a/v1]", "twice"), ("http://me:secret@h/v1", "put a key into")],
)
def test_odd_lists_of_addresses_are_one_sentence(address: str, trouble: str):
    with pytest.raises(ConfigError, match=rf"^engine\.base_url .*{trouble}"):
        config(address)
