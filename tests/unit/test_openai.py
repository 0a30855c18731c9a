"""The HTTP engine against a server of our own on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from pipeline.chain.compose import compose_config
from pipeline.core.errors import StageError
from pipeline.engines.base import ChoiceQuery, Request
from pipeline.engines.openai import OpenAIEngine
from pipeline.records import Message


class Server(BaseHTTPRequestHandler):
    failures_left = 0
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Server.failures_left > 0:
            Server.failures_left -= 1
            self.send_error(503)
            return
        Server.seen.append(body)
        top = [{"token": " A", "logprob": -0.2, "bytes": None}, {"token": "(a", "logprob": -3.0, "bytes": None}]
        choice = {
            "index": 0,
            "finish_reason": "length" if body["max_tokens"] == 1 else "stop",
            "message": {"role": "assistant", "content": f" echo {body['messages'][-1]['content']}"},
            "logprobs": {"content": [{"token": " A", "logprob": -0.2, "bytes": None, "top_logprobs": top}]}
            if body.get("logprobs")
            else None,
        }
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Server.failures_left, Server.seen = 0, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def engine(url: str, *overrides: str) -> OpenAIEngine:
    options = ["engine=openai", "preferences=ab", "engine.model=m", f"engine.base_url={url}", *overrides]
    return OpenAIEngine(compose_config(options).engine)


def ask(number: int) -> Request:
    messages = [Message(role="user", content=f"q{number}")]
    return Request(id=str(number), messages=messages, seed=number, max_new_tokens=5, temperature=0.5)


def test_replies_come_back_by_id_and_survive_a_few_failures(url: str):
    Server.failures_left = 1
    tested = engine(url)
    [batch] = tested.batches([ask(i) for i in range(3)])
    done = tested.generate(batch)
    assert [(c.id, c.text, c.finish, c.num_tokens) for c in done] == [
        (str(i), f"echo q{i}", "stop", 2) for i in range(3)
    ]
    assert {body["seed"] for body in Server.seen} == {0, 1, 2} and Server.seen[0]["temperature"] == 0.5


def test_choices_are_read_from_the_likeliest_tokens(url: str):
    query = ChoiceQuery(id="c", messages=[Message(role="user", content="which?")], opening="(", choices=("A", "B"))
    [answer] = engine(url).score([query])
    assert answer.logprobs == [-0.2, -3.0], "an unlisted choice is bounded by the least likely listed token"


def test_a_dead_server_is_one_sentence(url: str):
    Server.failures_left = 10**6
    with pytest.raises(StageError, match="run the same command again"):
        engine(url, "engine.max_retries=0").generate([ask(1)])
