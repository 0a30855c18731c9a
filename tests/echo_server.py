"""A chat server that repeats the last turn, or does what a test tells it; and how tests ask it."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

from pipeline.chain.compose import compose_config
from pipeline.core.distributed import LaunchConfig
from pipeline.engines.base import ChoiceQuery, Request, Weights, open_engine
from pipeline.engines.server_engine import ServerEngine
from pipeline.records import Message

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
