"""``openai``: a server with OpenAI's chat API, such as vLLM, llama.cpp, SGLang or a hosted one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import StageError
from pipeline.core.settings import RUNTIME
from pipeline.engines.base import (
    ENGINES,
    Answer,
    AskT,
    ChoiceQuery,
    Completion,
    Engine,
    EngineConfig,
    EngineKind,
    Query,
    ReplyQuery,
    Request,
    Weights,
)
from pipeline.records import Message

NEVER = -100.0  # the log-probability of a choice if no choice was in the server's list; it counts as unparseable
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@ENGINES.add
class OpenAI(EngineKind):
    """A server with a chat API."""

    name = "openai"

    class Config(EngineConfig):
        """A server with OpenAI's chat API."""

        kind: Literal["openai"] = "openai"
        """A server with OpenAI's chat API."""
        model: str
        """The model's name on the server."""
        base_url: str | None = None
        """Address of the server, up to /v1; null: OpenAI's own."""
        api_key_variable: Annotated[str, RUNTIME] = "OPENAI_API_KEY"
        """The environment variable that holds the key."""
        max_parallel: Annotated[int, RUNTIME] = Field(default=8, ge=1)
        """Requests that are sent at the same time."""
        max_retries: Annotated[int, RUNTIME] = Field(default=5, ge=0)
        """How often a failed request is sent again."""
        timeout_seconds: Annotated[float, RUNTIME] = Field(default=120.0, ge=0.1)
        """The longest time that one request may take, in seconds."""

        @property
        def model_name(self) -> str | None:
            return self.model

        @model_validator(mode="after")
        def _check_url(self) -> Self:
            if self.base_url and not self.base_url.startswith(("http://", "https://")):
                raise ValueError(f"{{here}}.base_url is {self.base_url!r}; it must begin with http:// or https://")
            return self

    @staticmethod
    def open(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
        assert isinstance(config, OpenAI.Config)
        return OpenAIEngine(config)


class OpenAIEngine:
    """Replies and first-token log-probabilities over HTTP. The client library handles retries and time-outs."""

    def __init__(self, config: OpenAI.Config) -> None:
        import openai

        self.name = f"{config.model}@{config.base_url or 'openai'}"
        self._config = config
        self._client = openai.OpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_variable, "none"),
            max_retries=config.max_retries,
            timeout=config.timeout_seconds,
        )

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]:
        size = self._config.max_parallel
        return [list(asks[start : start + size]) for start in range(0, len(asks), size)]

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        return self._in_parallel(self._reply, batch)

    def score(self, batch: Sequence[Query]) -> list[Answer]:
        return self._in_parallel(self._choose, batch)

    def _in_parallel(self, work: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT]:
        from openai import OpenAIError

        try:
            with ThreadPoolExecutor(self._config.max_parallel) as pool:
                return list(pool.map(work, items))
        except OpenAIError as error:
            raise StageError(
                f"The server {self.name} failed ({str(error).splitlines()[0]}); finished replies are kept; run the "
                "same command again."
            ) from None

    def _reply(self, request: Request) -> Completion:
        response: Any = self._client.chat.completions.create(
            model=str(self._config.model),
            messages=_begun(request),  # type: ignore[arg-type]
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed % 2**31,
            max_tokens=request.max_new_tokens,
        )
        choice = response.choices[0]
        num_tokens = response.usage.completion_tokens if response.usage else 0
        finish: Literal["stop", "length"] = "stop" if choice.finish_reason == "stop" else "length"
        text = (choice.message.content or "").strip()
        return Completion(id=request.id, text=text, num_tokens=num_tokens, finish=finish)

    def _choose(self, query: Query) -> Answer:
        assert not isinstance(query, ReplyQuery), "preflight refuses labellers that score given replies"
        response: Any = self._client.chat.completions.create(
            model=str(self._config.model),
            messages=_with_instruction(query),  # type: ignore[arg-type]
            temperature=0.0,
            max_tokens=1,
            logprobs=True,
            top_logprobs=20,
        )
        listed = response.choices[0].logprobs
        entries = listed.content[0].top_logprobs if listed and listed.content else []
        best = dict.fromkeys(query.choices, NEVER)
        for entry in entries:
            word = entry.token.strip(" (\n").casefold()
            for choice in query.choices:
                if word == choice.strip().casefold():
                    best[choice] = max(best[choice], entry.logprob)
        # An unlisted choice is at most as likely as the least likely listed token, so that bound is used.
        if any(value > NEVER for value in best.values()):
            bound = min(entry.logprob for entry in entries)
            best = {choice: value if value > NEVER else bound for choice, value in best.items()}
        return Answer(id=query.id, logprobs=[best[choice] for choice in query.choices])


def _begun(request: Request) -> list[Message]:
    """The request's turns; the prefix is the last turn, and servers that support it continue that turn."""
    begun = [Message(role="assistant", content=request.prefix)] if request.prefix else []
    return [*request.messages, *begun]


def _with_instruction(query: ChoiceQuery) -> list[Message]:
    """The query's turns with an instruction to answer in one word: a chat server can't continue ``opening``."""
    *before, last = query.messages
    words = " or ".join(choice.strip() for choice in query.choices)
    return [*before, Message(role=last["role"], content=f"{last['content']}\n\nAnswer only {words}.")]
