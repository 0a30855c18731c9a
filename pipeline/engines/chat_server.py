"""What the answers and errors of a server with OpenAI's chat API mean, and what such a server may not take."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.core.text import whole_characters
from pipeline.engines.base import Finish
from pipeline.engines.thoughts import without_thoughts
from pipeline.records import Message

SHOWN_CHARACTERS = 200  # of an answer, in a message
REFUSES = {400, 413, 422, 451}  # the status of a request that would be refused again
STOPS = {401, 402, 403, 404, 405}  # the status of a wrong key, address or model: no request can succeed
BROKEN_OFF = ("abort", "error")  # finish reasons of a server that is stopped or overloaded
FEWER_LOGPROBS = 5  # some servers list no more than this


class RefusedError(Exception):
    """The server refuses this request for good. The message is the server's own sentence."""

    @property
    def is_too_long(self) -> bool:
        """Whether the request does not fit the model's context."""
        return bool(_TOO_LONG.search(str(self)))


class ServerError(Exception):
    """There was no usable answer.

    Args:
        status: the HTTP status; None: no connection, or an answer without a reply.
        retry_after: the seconds that the server asks to wait; None: it does not say.
    """

    def __init__(self, reason: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server answered.

    ``listed``: (token, log-probability) of the likeliest first tokens. ``prompt``: what the server says about the
    tokens of the prompt; ``prompts.py`` reads it. None: not given. A number of tokens that is not given is 0.
    """

    text: str
    num_tokens: int
    num_prompt_tokens: int
    finish: Finish
    listed: list[tuple[str, float]] | None
    prompt: list[Any] | None = None


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
    is_chat = message is not None
    if not is_chat and isinstance(written := _get(choice, "text"), str):  # of /completions
        message = {"content": written}
    if not isinstance(message, dict):
        raise ServerError(f"the answer has no reply: {shown(body)}")
    if message.get("refusal") and not message.get("content"):  # OpenAI's own layout of a refusal
        raise RefusedError(shown(str(message["refusal"])))
    written, reason = _text(message.get("content")), _get(choice, "finish_reason")
    if written is None:
        raise ServerError(f"the reply is no text: {shown(body)}")
    if reason in BROKEN_OFF:
        raise ServerError(f"the server broke the reply off ({reason})")
    text = without_thoughts(written).strip()
    only_thoughts = not text and bool(written.strip() or message.get("reasoning_content") or message.get("reasoning"))
    usage = _get(answer, "usage")
    return Reply(
        text=text,
        num_tokens=_number(_get(usage, "completion_tokens")),
        num_prompt_tokens=_number(_get(usage, "prompt_tokens")),
        finish=_finish(reason, text, only_thoughts),
        listed=_listed(_get(choice, "logprobs"), is_chat),
        prompt=scored if isinstance(scored := _get(choice, "prompt_logprobs"), list) else None,
    )


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


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


def _finish(reason: Any, text: str, only_thoughts: bool) -> Finish:
    if reason == "content_filter":
        return "length" if text else "refused"
    return "length" if reason in ("length", "max_tokens") or only_thoughts else "stop"


def _listed(logprobs: Any, is_chat: bool) -> list[tuple[str, float]] | None:
    """The likeliest first tokens, in the layout of chat or in the older one of completions; None if there are none.

    llama.cpp has the layout of chat everywhere. Its completions name tokens by their id here, as those of others do.
    """
    content, older = _get(logprobs, "content"), _get(logprobs, "top_logprobs")
    if isinstance(content, list) and content:
        entries = _get(content[0], "top_logprobs")
        entries = entries if isinstance(entries, list) else []
        pairs = [
            (_get(entry, "token") if is_chat else f"token_id:{_get(entry, 'id')}", _get(entry, "logprob"))
            for entry in entries
        ]
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


def error_of(status: int, body: str, retry_after: float | None = None) -> RefusedError | ServerError:
    """The error that an HTTP status and its text mean."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    answer = answer[0] if isinstance(answer, list) and answer else answer  # Google's server writes a list
    error = _get(answer, "error") or answer
    if status == 429 and "insufficient_quota" in (_get(error, "code"), _get(error, "type")):
        status = 402  # no credit is left, so waiting does not help
    return failure(status, sentence_of(error) if error else f"HTTP {status}: {shown(body)}", retry_after)


def failure(status: int | None, sentence: str, retry_after: float | None = None) -> RefusedError | ServerError:
    return RefusedError(sentence) if status in REFUSES else ServerError(sentence, status, retry_after)


def seconds_to_wait(headers: Mapping[str, str], now: datetime) -> float | None:
    """What ``Retry-After`` asks for, as seconds or as a date; None if it is not there or can't be read."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:  # no number, so maybe a date
        try:
            seconds = (parsedate_to_datetime(value) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):  # no date, one without a time zone, or one out of range
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)


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

_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|max(imum)?[ _]model[ _]len|(prompt|input|request) is too long", re.I
)
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
    if "messages" in body and body["messages"][0]["role"] == "system" and _SYSTEM_TURN.search(sentence):
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
