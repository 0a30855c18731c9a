"""What is sent to a server for an ask: turns for its chat API, or token ids that are rendered here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pipeline.chat import Renderer
from pipeline.core.text import whole_characters
from pipeline.engines.base import NEVER, Ask, ChoiceQuery, ReplyQuery, Request
from pipeline.engines.chat_server import Reply, read_reply
from pipeline.engines.sglang import read_generated
from pipeline.records import Message

ROUNDING = 1e-6  # log-probabilities are rounded, so the listed tokens leave at least this much to the others
MOST_LISTED = 20  # the likeliest tokens that most servers list
Scores = Literal["none", "vllm", "sglang"]


@dataclass(frozen=True)
class Post:
    """One request. ``path``: after the beginning of the API, or after its host if ``at_host``."""

    path: str
    body: dict[str, Any]
    read: Callable[[str], Reply] = read_reply
    at_host: bool = False


class Prompts(ABC):
    """Makes a request of an ask, and log-probabilities of what comes back."""

    @abstractmethod
    def post(self, ask: Ask) -> Post: ...

    @abstractmethod
    def logprobs(self, query: ChoiceQuery | ReplyQuery, reply: Reply) -> list[float] | None:
        """The numbers of an ``Answer``; None if the server gave no log-probabilities."""


class ChatPrompts(Prompts):
    """Turns for /chat/completions. The server renders them with its own template.

    Args:
        model: the model's name on the server.
    """

    def __init__(self, model: str) -> None:
        self._model = model

    def post(self, ask: Ask) -> Post:
        if isinstance(ask, Request):
            return self._chat(
                _begun(ask),
                max_tokens=ask.max_new_tokens,
                temperature=ask.temperature,
                top_p=ask.top_p,
                seed=ask.seed % 2**31,
            )
        assert isinstance(ask, ChoiceQuery), "the checks before a run refuse what scores given replies"
        listed = {"logprobs": True, "top_logprobs": MOST_LISTED}
        return self._chat(with_instruction(ask), max_tokens=1, temperature=0.0, **listed)

    def _chat(self, messages: Sequence[Message], **settings: Any) -> Post:
        return Post("/chat/completions", chat_fields(self._model, messages, **settings))

    def logprobs(self, query: ChoiceQuery | ReplyQuery, reply: Reply) -> list[float] | None:
        assert isinstance(query, ChoiceQuery)
        return None if reply.listed is None else choice_logprobs(query.choices, reply.listed)


class TokenPrompts(Prompts):
    """Token ids for /completions, rendered as for training; a given beginning of the reply is continued.

    Args:
        model: the model's name on the server.
        load: returns the renderer of the model's tokenizer.
        scores: how the server scores a given reply.
    """

    def __init__(self, model: str, load: Callable[[], Renderer], scores: Scores) -> None:
        self._model, self._load, self.scores = model, load, scores

    @cached_property
    def _chat(self) -> Renderer:
        return self._load()

    def spelled(self, messages: Sequence[Message]) -> tuple[list[int], str]:
        """The token ids of a prompt, and the text that they mean."""
        ids = self._chat.prompt_ids(messages)
        return ids, self._chat.spelled(ids)

    def post(self, ask: Ask) -> Post:
        if isinstance(ask, ReplyQuery):
            prompt, reply = self._chat.prompt_ids(ask.messages), self._chat.reply_ids(ask.reply)
            if self.scores == "sglang":
                # The first position has no log-probability, so one more is asked for.
                return self._generate(prompt + reply, logprob_start_len=len(prompt) - 1)
            return self._complete(prompt + reply, max_tokens=1, temperature=0.0, prompt_logprobs=0)
        if isinstance(ask, ChoiceQuery):
            prompt = self._chat.prompt_ids(ask.messages, ask.opening)
            if self.scores == "sglang":
                return self._generate(prompt, token_ids_logprob=self._choice_ids(ask))
            listed: dict[str, Any] = {"logprobs": MOST_LISTED, "return_tokens_as_token_ids": True}
            if self.scores == "vllm":  # exactly these, however unlikely; older releases list the likeliest
                listed["logprob_token_ids"] = sorted(set(self._choice_ids(ask)))
            return self._complete(prompt, max_tokens=1, temperature=0.0, **listed)
        return self._complete(
            self._chat.prompt_ids(ask.messages, ask.prefix),
            max_tokens=ask.max_new_tokens,
            temperature=ask.temperature,
            top_p=ask.top_p,
            seed=ask.seed % 2**31,
            stop_token_ids=sorted(self._chat.stop_ids),
            # Without these, vLLM and SGLang take them from the model's own generation_config.json.
            top_k=-1,
            min_p=0.0,
            repetition_penalty=1.0,
        )

    def _complete(self, prompt: list[int], **settings: Any) -> Post:
        return Post("/completions", {"model": self._model, "prompt": prompt, **settings})

    def _generate(self, prompt: list[int], **settings: Any) -> Post:
        body = {"input_ids": prompt, "return_logprob": True, **settings}
        body["sampling_params"] = {"max_new_tokens": 1, "temperature": 0.0}
        return Post("/generate", body, read_generated, at_host=True)

    def logprobs(self, query: ChoiceQuery | ReplyQuery, reply: Reply) -> list[float] | None:
        if isinstance(query, ChoiceQuery):
            signs = [f"token_id:{number}" for number in self._choice_ids(query)]
            return None if reply.listed is None else choice_logprobs(signs, reply.listed)
        ids = self._chat.reply_ids(query.reply)
        found = [_of_token(entry, token) for entry, token in zip((reply.prompt or [])[-len(ids) :], ids, strict=False)]
        known = [logprob for logprob in found if logprob is not None]
        return [math.fsum(known) / len(known)] if len(known) == len(ids) else None

    def _choice_ids(self, query: ChoiceQuery) -> list[int]:
        return [self._chat.next_id(query.opening, choice) for choice in query.choices]


def _of_token(entry: Any, token: int) -> float | None:
    """The log-probability of a token of the prompt: vLLM's {id: {logprob}} or SGLang's [log-probability, id, text]."""
    if isinstance(entry, dict):
        found = entry.get(str(token))
        value = found.get("logprob") if isinstance(found, dict) else None
    else:
        value = entry[0] if isinstance(entry, list) and len(entry) > 1 and entry[1] == token else None
    return min(float(value), 0.0) if isinstance(value, int | float) and math.isfinite(value) else None


def choice_logprobs(choices: Sequence[str], listed: Sequence[tuple[str, float]]) -> list[float]:
    """The log-probability of each choice, from the likeliest first tokens; ``NEVER`` for all if none is listed.

    An unlisted choice is at most as likely as the least likely listed token, and as all unlisted tokens together. The
    smaller of these bounds is used.
    """
    best = [NEVER] * len(choices)
    for token, logprob in listed:
        word = token.strip(" (\n").casefold()
        for place, choice in enumerate(choices):
            if word == choice.strip().casefold():
                best[place] = max(best[place], logprob)
    if all(value == NEVER for value in best):
        return best
    rest = max(1 - math.fsum(math.exp(logprob) for _, logprob in listed), ROUNDING)
    bound = min(math.log(rest), *(logprob for _, logprob in listed))
    return [bound if value == NEVER else value for value in best]


def chat_fields(model: str, messages: Sequence[Message], **settings: Any) -> dict[str, Any]:
    """The fields of a chat request, with whole characters only."""
    whole = [Message(role=turn["role"], content=whole_characters(turn["content"])) for turn in messages]
    return {"model": model, "messages": whole, **settings}


def _begun(request: Request) -> list[Message]:
    """The request's turns; the prefix is the last turn, and servers that support it continue that turn."""
    begun = [Message(role="assistant", content=request.prefix)] if request.prefix else []
    return [*request.messages, *begun]


def with_instruction(query: ChoiceQuery) -> list[Message]:
    """The query's turns with an instruction to answer in one word: a chat server can't continue ``opening``."""
    *before, last = query.messages
    words = " or ".join(choice.strip() for choice in query.choices)
    return [*before, Message(role=last["role"], content=f"{last['content']}\n\nAnswer only {words}.")]
