"""The HTTP engine against a server of our own on this machine."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.chain.compose import compose_config
from pipeline.core.cache import RecordLog
from pipeline.core.errors import ConfigError, StageError
from pipeline.engines.base import NEVER, ChoiceQuery, Completion, Request, generate_all
from pipeline.engines.chat_server import RefusedError, ServerError, error_of, read_reply
from pipeline.engines.openai import OpenAIEngine, choice_logprobs
from pipeline.records import Message
from tests.fakes import FakeLogbook

Change = Callable[[dict[str, Any], dict[str, Any]], Any]
"""(request, usual answer) → what the server sends: an object, bytes, or (status, object)."""


class Server(BaseHTTPRequestHandler):
    """Echoes the last turn. ``change`` makes another answer of it."""

    failures_left = 0
    cuts_left = 0
    change: ClassVar[Change]
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.seen.append(body)
        if Server.failures_left > 0:
            Server.failures_left -= 1
            self.send_error(503)
            return
        changed = Server.change(body, usual_answer(body))
        status, content = changed if isinstance(changed, tuple) else (200, changed)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(content, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
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
    monkeypatch.setattr("pipeline.engines.chat_server.FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Server.failures_left, Server.cuts_left, Server.seen = 0, 0, []
    Server.change = lambda body, answer: answer
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def config(url: str, *overrides: str) -> Any:
    options = ["engine=openai", "preferences=ab", "engine.model=m", f"engine.base_url={url}", *overrides]
    return compose_config(options).engine


def engine(url: str, *overrides: str) -> OpenAIEngine:
    return OpenAIEngine(config(url, *overrides))


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
    tested = engine(url)
    [batch] = tested.batches([ask(i) for i in range(3)])
    done = tested.generate(batch)
    assert [(c.id, c.text, c.finish, c.num_tokens) for c in done] == [
        (str(i), f"echo q{i}", "stop", 2) for i in range(3)
    ]
    assert {body["seed"] for body in Server.seen} == {0, 1, 2} and Server.seen[0]["temperature"] == 0.5


REPLIES: dict[str, tuple[Change, str, str, int]] = {
    "parts": (said([{"type": "thinking", "thinking": []}, {"type": "text", "text": "A "}, {"text": "b"}]),
              "A b", "stop", 2),
    "null content": (said(None), "", "stop", 2),
    "only thoughts of a parser": (said(None, "length", reasoning_content="Hmm."), "", "length", 2),
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
    assert engine(url).generate([question]) == [Completion(id="1", text=text, num_tokens=num_tokens, finish=finish)]  # type: ignore[arg-type]
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
    "an error in a choice": (without("choices", 0, "error", value={"message": "upstream", "code": 502}), "upstream"),
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_is_no_reply_is_asked_again_and_then_one_sentence(url: str, kind: str):
    broken, sentence = PASSING[kind]
    Server.change = lambda body, answer: answer if len(Server.seen) > 2 else broken(body, answer)
    assert engine(url).generate([ask(1)])[0].text == "echo q1"
    Server.change = broken
    with pytest.raises(StageError, match=f"{sentence}.*base_url.*run the same command again") as raised:
        engine(url, "engine.max_retries=1").generate([ask(1)])
    assert len(str(raised.value)) < 500


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


def test_a_dead_server_is_one_sentence(url: str):
    Server.failures_left = 10**6
    with pytest.raises(StageError, match="run the same command again"):
        engine(url, "engine.max_retries=0").generate([ask(1)])


def test_a_server_that_is_too_slow_is_one_sentence(url: str):
    Server.change = lambda body, answer: time.sleep(0.3) or answer
    with pytest.raises(StageError, match=r"no answer within 0\.1 s"):
        engine(url, "engine.max_retries=0", "engine.timeout_seconds=0.1").generate([ask(1)])


def test_a_failed_request_loses_only_itself(url: str, tmp_path: Path):
    requests, broken = [ask(i) for i in range(4)], sent(b"broken")
    Server.change = lambda body, answer: broken(body, answer) if body["seed"] == 2 else answer
    with pytest.raises(StageError):
        generate_all(engine(url, "engine.max_retries=0"), "", requests, FakeLogbook(tmp_path), "log")
    assert set(RecordLog(tmp_path, "log").rows) == {"0", "1", "3"}
    Server.change, Server.seen = (lambda body, answer: answer), []
    done = generate_all(engine(url), "", requests, FakeLogbook(tmp_path), "log")
    assert [body["seed"] for body in Server.seen] == [2] and done["2"].text == "echo q2"


# --- Choices -------------------------------------------------------------------------------------------------------


def test_choices_are_read_from_the_likeliest_tokens(url: str):
    [answer] = engine(url).score([which(1)])
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
    tested = engine(url)
    assert tested.score([which(0)])[0].logprobs == [NEVER, NEVER]
    with pytest.raises(StageError, match=r"m@http.* returns no log-probabilities.*vLLM"):
        tested.score([which(i) for i in range(1, 8)])


def test_a_logprob_above_zero_is_zero(url: str):
    top = [{"token": "A", "logprob": 1000}, {"token": "B", "logprob": float("nan")}]
    Server.change = without("choices", 0, "logprobs", "content", 0, "top_logprobs", value=top)
    assert engine(url).score([which(1)])[0].logprobs == pytest.approx([0.0, -13.8155], abs=1e-4)  # log(1e-6)


def test_logprobs_in_the_older_layout_are_read(url: str):
    older = {"tokens": ["A"], "token_logprobs": [-0.1], "top_logprobs": [{"A": -0.5, "B": -1.0}]}
    Server.change = without("choices", 0, "logprobs", value=older)
    assert engine(url).score([which(1)])[0].logprobs == [-0.5, -1.0]


# --- Refusals ------------------------------------------------------------------------------------------------------


def test_a_refused_request_is_its_result_and_the_run_goes_on(url: str):
    Server.change = refused("It was filtered.", lambda body: body["messages"][-1]["content"] == "q1")
    done = engine(url).generate([ask(i) for i in range(3)])
    assert [(c.finish, c.text) for c in done] == [("stop", "echo q0"), ("refused", ""), ("stop", "echo q2")]
    assert len(Server.seen) == 3, "a refusal is not asked again"
    Server.change = refused("It was filtered.", lambda body: True)
    [answer] = engine(url).score([which(1)])
    assert answer.refused and answer.logprobs == [NEVER, NEVER]


@pytest.mark.parametrize(("status", "stops"), [(413, False), (422, False), (401, True), (403, True), (404, True)])
def test_only_a_refusal_of_the_content_lets_the_run_go_on(url: str, status: int, stops: bool):
    Server.change = sent((status, {"detail": [{"loc": ["body", "messages"], "msg": "is too long"}]}))
    if stops:
        named = "base_url" if status == 404 else "OPENAI_API_KEY"
        with pytest.raises(StageError, match=rf"body\.messages: is too long.*{named}"):
            engine(url).generate([ask(1)])
    else:
        assert engine(url).generate([ask(1)])[0].finish == "refused"
    assert len(Server.seen) == 1


def test_a_server_that_refuses_everything_stops_the_run(url: str):
    Server.change = refused("The model is for embeddings.")
    tested = engine(url)
    batches = tested.batches([ask(i) for i in range(24)])
    tested.generate(batches[0])
    tested.generate(batches[1])
    with pytest.raises(StageError, match=r"each of the first 24 requests \(The model is for embeddings"):
        tested.generate(batches[2])


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
    monkeypatch.setattr("pipeline.engines.chat_server.warn", warnings.append)
    Server.change, is_adapted = FALLBACKS[kind]
    tested = engine(url)
    for _ in range(2):
        [done] = tested.generate([ask(1, Message(role="system", content="Be good."))])
        assert done.finish == "stop"
    assert len(Server.seen) == 3 and is_adapted(Server.seen[1]) and is_adapted(Server.seen[2])
    assert len(warnings) == (kind in ("seed", "temperature"))


def test_fewer_logprobs_are_asked_for_where_twenty_are_too_many(url: str):
    Server.change = refused("top_logprobs must be at most 5", lambda body: body.get("top_logprobs", 0) > 5)
    assert engine(url).score([which(1)])[0].logprobs == [-0.2, -3.0]


def test_nothing_is_learnt_from_a_refusal_that_stays(url: str):
    Server.change = refused("The system prompt was filtered.")
    tested = engine(url)
    tested.generate([ask(1, Message(role="system", content="Be good."))])
    Server.change = sent(usual_answer({"messages": [{"content": ""}]}))
    tested.generate([ask(1, Message(role="system", content="Be good."))])
    assert Server.seen[-1]["messages"][0]["role"] == "system"


# --- Before a run --------------------------------------------------------------------------------------------------


def test_one_token_is_asked_for_before_a_run(url: str):
    config(url).reach("engine")
    [body] = Server.seen
    assert body["max_tokens"] == 1 and body["model"] == "m"
    Server.change = refused("the model output limit was reached; use higher max_tokens", param="max_tokens")
    config(url).reach("engine")


TROUBLES: dict[str, tuple[Change, str]] = {
    "path": (sent((404, b"<html>Not found")), r"^judge\.base_url is 'http.*/v1' and judge\.model is 'm'.*Not found"),
    "key": (sent((401, {"error": "bad key"})), r"^judge\.api_key_variable is 'OPENAI_API_KEY'.*bad key"),
    "model": (refused("no such model"), r"^judge\.model is 'm', .*no such model"),
    "page": (sent(b"<html>welcome"), r"^judge\.base_url is 'http.*<html>welcome.* ends in /v1"),
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
    with pytest.raises(ConfigError, match=r"api_key_variable is 'OPENAI_API_KEY'") as raised:
        config(url).reach("engine")
    assert key not in str(raised.value)


def test_the_hosted_server_needs_a_key(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="which is not set in the environment"):
        config("null").reach("engine")


@pytest.mark.parametrize(
    "address", ["http://h:99999/v1", "http://h:x/v1", "http:///v1", "'http://h h/v1'", "http://h/v1/chat/completions"]
)
def test_odd_addresses_are_one_sentence(address: str):
    with pytest.raises(ConfigError, match=r"^engine\.base_url is 'http:.*, which .*;? ?.*\.$"):
        config(address)
