"""One request to a server with OpenAI's chat API: what its answers mean, what is sent again, and what it can't do."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from pipeline.core.log import warn
from pipeline.core.text import whole_characters
from pipeline.engines.base import Finish
from pipeline.engines.thoughts import without_thoughts
from pipeline.records import Message

SHOWN_CHARACTERS = 200  # of an answer, in a message
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 8.0  # before a request is sent again, as in the client library
REFUSES = {400, 413, 422, 451}  # the status of a request that would be refused again
STOPS = {401, 402, 403, 404, 405}  # the status of a wrong key, address or model: no request can succeed
FEWER_LOGPROBS = 5  # some servers list no more than this


class RefusedError(Exception):
    """The server refuses this request for good. The message is the server's own sentence."""


class ServerError(Exception):
    """There was no usable answer. ``status`` is the HTTP status; None: no connection, or an answer without a reply."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server answered. ``listed``: (token, log-probability) of the likeliest first tokens; None: not given."""

    text: str
    num_tokens: int
    finish: Finish
    listed: list[tuple[str, float]] | None


# --- Reading an answer ---------------------------------------------------------------------------------------------


def read_reply(body: str) -> Reply:
    """Read the text of an answer with HTTP status 200.

    Raises:
        RefusedError: it is an error that another try would not change.
        ServerError: it is another error, or no reply.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise ServerError(f"the answer is no JSON: {shown(body)}") from None
    choices = _get(answer, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if error := _get(answer, "error") or _get(choice, "error"):
        raise failure(_status_in(error), sentence_of(error))
    message = _get(choice, "message")
    if not isinstance(message, dict):
        raise ServerError(f"the answer has no reply: {shown(body)}")
    if message.get("refusal") and not message.get("content"):  # OpenAI's own layout of a refusal
        raise RefusedError(shown(str(message["refusal"])))
    written = _text(message.get("content"))
    if written is None:
        raise ServerError(f"the reply is no text: {shown(body)}")
    text = without_thoughts(written).strip()
    num_tokens = _get(_get(answer, "usage"), "completion_tokens")
    return Reply(
        text=text,
        num_tokens=num_tokens if isinstance(num_tokens, int) else 0,
        finish=_finish(_get(choice, "finish_reason"), written, text),
        listed=_listed(_get(choice, "logprobs")),
    )


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(content: Any) -> str | None:
    """The text of a reply: a string, nothing, or a list of parts, of which those with text count. None: no text."""
    if content is None or isinstance(content, str):
        return whole_characters(content or "")
    if not isinstance(content, list):
        return None
    parts = [part if isinstance(part, str) else _get(part, "text") for part in content]
    return whole_characters("".join(part for part in parts if isinstance(part, str)))


def _finish(reason: Any, written: str, text: str) -> Finish:
    if reason == "content_filter":
        return "length" if text else "refused"
    only_thoughts = bool(written.strip()) and not text
    return "length" if reason in ("length", "max_tokens") or only_thoughts else "stop"


def _listed(logprobs: Any) -> list[tuple[str, float]] | None:
    """The likeliest first tokens, in the layout of chat or in the older one of completions; None if there are none."""
    content, older = _get(logprobs, "content"), _get(logprobs, "top_logprobs")
    if isinstance(content, list) and content:
        entries = _get(content[0], "top_logprobs")
        entries = entries if isinstance(entries, list) else []
        pairs = [(_get(entry, "token"), _get(entry, "logprob")) for entry in entries]
    elif isinstance(older, list) and older and isinstance(older[0], dict):
        pairs = list(older[0].items())
    else:
        return None
    known = [(token, float(p)) for token, p in pairs if isinstance(token, str) and isinstance(p, int | float)]
    return [(token, min(p, 0.0)) for token, p in known if math.isfinite(p)] or None


# --- Reading an error ----------------------------------------------------------------------------------------------


def shown(text: str) -> str:
    """The first characters of a text, in one line, for a message."""
    line = " ".join(whole_characters(text).split())
    return repr(line[:SHOWN_CHARACTERS]) if line else "an empty answer"


def error_of(status: int, body: str) -> RefusedError | ServerError:
    """The error that an HTTP status and its text mean."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    answer = answer[0] if isinstance(answer, list) and answer else answer  # Google's server writes a list
    error = _get(answer, "error") or answer
    return failure(status, sentence_of(error) if error else f"HTTP {status}: {shown(body)}")


def failure(status: int | None, sentence: str) -> RefusedError | ServerError:
    return RefusedError(sentence) if status in REFUSES else ServerError(sentence, status)


def sentence_of(error: Any) -> str:
    """What an error says, with the parameter that it names. ``detail`` is where FastAPI writes it."""
    message = _get(error, "message") or _get(error, "detail") or error
    if isinstance(message, list):
        message = "; ".join(map(_complaint, message))
    text = message if isinstance(message, str) else json.dumps(message)
    named = _get(error, "param")
    text = f"{text} ({named})" if isinstance(named, str) and named not in text else text
    return " ".join(whole_characters(text).split())[: 2 * SHOWN_CHARACTERS].rstrip(".")


def _complaint(one: Any) -> str:
    """``body.seed: Extra inputs are not permitted``"""
    place, text = _get(one, "loc"), _get(one, "msg")
    return f"{'.'.join(map(str, place))}: {text}" if isinstance(place, list) else json.dumps(one)


def _status_in(error: Any) -> int | None:
    """The HTTP status inside an error that came with status 200."""
    if "content_filter" in (_get(error, "code"), _get(error, "type")):
        return 400
    for name in ("code", "status", "status_code"):
        if str(_get(error, name)).isdecimal():
            return int(str(_get(error, name)))
    return 400 if _get(error, "type") == "invalid_request_error" else None


# --- What a server can't do ----------------------------------------------------------------------------------------

_UNSUPPORTED = re.compile(r"support|unrecogni[sz]ed|unknown|unexpected|extra|permitted|allowed|invalid arg", re.I)
_SYSTEM_TURN = re.compile(
    r"system\W+(role|message|prompt|instruction|turn)|['\"]system['\"]|\broles?\b|developer", re.I
)


def lesson_of(sentence: str, body: Mapping[str, Any]) -> str | None:
    """What to change in a refused request, as the server's sentence says; None if the refusal is about its content."""
    if "max_tokens" in body and "max_completion_tokens" in sentence:
        return "max_completion_tokens"
    for name in ("top_logprobs", "logprobs"):
        if name in body and re.search(rf"\b{name}\b", sentence):
            return "fewer_logprobs" if body.get("top_logprobs", 0) > FEWER_LOGPROBS else name
    if _UNSUPPORTED.search(sentence):
        for name in ("seed", "temperature", "top_p"):
            if name in body and re.search(rf"\b{name}\b", sentence):
                return name
    if body["messages"][0]["role"] == "system" and _SYSTEM_TURN.search(sentence):
        return "system"
    return None


def adapted(fields: Mapping[str, Any], lessons: frozenset[str]) -> dict[str, Any]:
    """The fields of a request as a server takes them that gave these lessons."""
    body = dict(fields)
    if "max_completion_tokens" in lessons:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if "fewer_logprobs" in lessons and "top_logprobs" in body:
        body["top_logprobs"] = FEWER_LOGPROBS
    if "system" in lessons:
        body["messages"] = folded(body["messages"])
    dropped = lessons & {"seed", "temperature", "top_p", "logprobs", "top_logprobs"}
    dropped |= {"top_logprobs"} if "logprobs" in lessons else set()
    return {name: value for name, value in body.items() if name not in dropped}


def folded(messages: Sequence[Message]) -> list[Message]:
    """The turns without a system turn: its text stands before the next turn of the user."""
    first, *rest = messages
    if first["role"] != "system":
        return list(messages)
    if rest and rest[0]["role"] == "user":
        return [Message(role="user", content=f"{first['content']}\n\n{rest[0]['content']}"), *rest[1:]]
    return [Message(role="user", content=first["content"]), *rest]


# --- Asking --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ChatServer:
    """Asks a server. It remembers what the server does not take, and then sends every request without it."""

    name: str
    base_url: str
    key: str
    max_retries: int
    timeout_seconds: float
    connect_seconds: float
    _lessons: frozenset[str] = field(default=frozenset(), init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        import openai

        self._client = openai.OpenAI(
            base_url=self.base_url,
            api_key=self.key,
            max_retries=self.max_retries,
            timeout=openai.Timeout(self.timeout_seconds, connect=self.connect_seconds),
        )

    def ask(self, fields: Mapping[str, Any]) -> Reply:
        """Send a request, again after a passing failure, and in another form if the server does not take this one.

        Raises:
            RefusedError: the server refuses this request for good.
            ServerError: it still fails after ``max_retries``.
        """
        lessons = self._lessons
        while True:
            body = adapted(fields, lessons)
            try:
                reply = self._send(body)
            except RefusedError as refusal:
                lesson = lesson_of(str(refusal), body)
                if lesson is None or lesson in lessons:
                    raise
                lessons |= {lesson}
            else:
                self._remember(lessons)
                return reply

    def _remember(self, lessons: frozenset[str]) -> None:
        with self._lock:  # requests run in threads, and each warning is given once
            new = sorted(lessons - self._lessons)
            self._lessons |= lessons
        for name in new:
            if name in ("temperature", "top_p"):
                warn(f"the server {self.name} does not take {name}: it is left out, and the server's own value holds.")
            elif name == "seed":
                warn(f"the server {self.name} does not take a seed: another run would get other replies.")

    def _send(self, body: Mapping[str, Any]) -> Reply:
        for num_failures in range(self.max_retries + 1):
            text = self._post(body)
            try:
                return read_reply(text)
            except ServerError as error:
                if num_failures == self.max_retries or error.status in STOPS:
                    raise
            time.sleep(min(FIRST_WAIT_SECONDS * 2**num_failures, LONGEST_WAIT_SECONDS))
        raise AssertionError("the last try returns or raises")

    def _post(self, body: Mapping[str, Any]) -> str:
        """The text of the answer. The client library sends the request again where HTTP says that this may help."""
        import openai

        try:
            response = self._client.chat.completions.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            raise error_of(error.status_code, error.response.text) from None
        except openai.APITimeoutError as error:
            connected = type(error.__cause__).__name__ != "ConnectTimeout"
            what = (
                f"answer within {self.timeout_seconds:g}"
                if connected
                else f"connection within {self.connect_seconds:g}"
            )
            raise ServerError(f"no {what} s") from None
        except openai.OpenAIError as error:
            cause = error.__cause__ or error
            raise ServerError(" ".join(str(cause).split()) or type(cause).__name__) from None
        return response.http_response.content.decode("utf-8-sig", "replace")
