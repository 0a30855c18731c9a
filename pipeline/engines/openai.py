"""``openai``: a server with OpenAI's chat API, such as vLLM, llama.cpp, SGLang or a hosted one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.settings import RUNTIME
from pipeline.core.text import whole_characters
from pipeline.engines.base import (
    ENGINES,
    NEVER,
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
    UnfinishedBatchError,
    Weights,
)
from pipeline.engines.chat_server import ChatServer, RefusedError, ServerError
from pipeline.records import Message

OWN_URL = "https://api.openai.com/v1"  # OpenAI's own server
ROUNDING = 1e-6  # log-probabilities are rounded, so the listed tokens leave at least this much to the others
MOST_REFUSED = 20  # a run stops after this many refusals without any answer
MOST_UNLISTED = 8  # a run stops after this many choice queries without any log-probability
SECONDS_BEFORE_A_RUN, CONNECT_SECONDS_BEFORE_A_RUN = 30.0, 5.0  # limits of the one request of ``reach``
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT", Completion, Answer)


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
            if self.base_url is not None and (trouble := _trouble_with(self.base_url)):
                raise ValueError(f"{{here}}.base_url is {self.base_url!r}, which {trouble}")
            return self

        def reach(self, field: str) -> None:
            """Ask the server for one token. Each kind of failure is a sentence of its own."""
            refuse_odd_key(self, field)
            server = chat_server(self, 1, SECONDS_BEFORE_A_RUN, CONNECT_SECONDS_BEFORE_A_RUN)
            try:
                server.ask(_fields(self.model, [Message(role="user", content="Say yes.")], max_tokens=1))
            except RefusedError as error:
                if "max_tokens" in str(error):
                    return  # models that think refuse so small a limit, but they have answered
                raise ConfigError(f"{field}.model is {self.model!r}, and the server refuses it: {error}.") from None
            except ServerError as error:
                raise ConfigError(_explained(self, field, error)) from None

    @staticmethod
    def open(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
        assert isinstance(config, OpenAI.Config)
        return OpenAIEngine(config)


def _trouble_with(url: str) -> str:
    """What is wrong with an address; empty if nothing is."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError as error:  # a port that is no number or out of range, half of an IPv6 address
        return f"is no address ({error}); write it like http://localhost:8000/v1"
    if not url.startswith(("http://", "https://")):
        return "must begin with http:// or https://"
    if any(character.isspace() or not character.isprintable() for character in url):
        return "has a space or a control character in it; remove it"
    if not named:
        return "names no host; write it like http://localhost:8000/v1"
    if url.rstrip("/").endswith("/completions"):
        return "is too long; end it with /v1"
    return ""


def refuse_odd_key(config: OpenAI.Config, field: str) -> None:
    """Check the key without showing it. A server of one's own mostly needs none."""
    name = config.api_key_variable
    key = os.environ.get(name, "")
    if not key and config.base_url is None:
        raise ConfigError(
            f"{field}.api_key_variable is {name!r}, which is not set in the environment; put your key there, or give "
            f"the address of another server as {field}.base_url."
        )
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"{field}.api_key_variable is {name!r}, whose value has spaces or characters that no key has; set it again."
        )


def chat_server(
    config: OpenAI.Config, max_retries: int, seconds: float = math.inf, connect_seconds: float = math.inf
) -> ChatServer:
    """The server of a configuration. The limits in seconds hold where they are below ``timeout_seconds``."""
    return ChatServer(
        name=_name(config),
        base_url=config.base_url or OWN_URL,
        key=os.environ.get(config.api_key_variable) or "none",
        max_retries=max_retries,
        timeout_seconds=min(config.timeout_seconds, seconds),
        connect_seconds=min(config.timeout_seconds, connect_seconds),
    )


def _name(config: OpenAI.Config) -> str:
    return f"{config.model}@{config.base_url or 'openai'}"


def _explained(config: OpenAI.Config, field: str, error: ServerError) -> str:
    """Why the server can't be used, as one sentence with the setting to change."""
    url = config.base_url or OWN_URL
    if error.status in (401, 403):
        variable = config.api_key_variable
        return f"{field}.api_key_variable is {variable!r}, but {url} refuses the key in it ({error}); set another key."
    if error.status in (404, 405):
        return (
            f"{field}.base_url is {url!r} and {field}.model is {config.model!r}, but there is no such address or model "
            f"({error}); the address mostly ends in /v1, and {url.rstrip('/')}/models lists the models."
        )
    if error.status is not None:
        return f"{field}.base_url is {url!r}, but the server can't answer now ({error}); try again later."
    return (
        f"{field}.base_url is {url!r}, but there is no usable answer ({error}); start the server, or correct the "
        "address, which mostly ends in /v1."
    )


class OpenAIEngine:
    """Replies and first-token log-probabilities over HTTP."""

    rows_are_independent = True

    def __init__(self, config: OpenAI.Config) -> None:
        self.name = _name(config)
        self._config = config
        self._server = chat_server(config, config.max_retries)
        self._num_refused: int | None = 0  # without any answer so far; None after an answer
        self._refusal = "content filter"  # why the newest refused request was refused
        self._num_unlisted: int | None = 0  # choice queries without any log-probability so far; None after one

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]:
        size = self._config.max_parallel
        return [list(asks[start : start + size]) for start in range(0, len(asks), size)]

    def generate(self, batch: Sequence[Request]) -> list[Completion]:
        results = self._in_parallel(self._reply, batch)
        self._stop_if_all_are_refused([completion.finish == "refused" for completion in results])
        return results

    def score(self, batch: Sequence[Query]) -> list[Answer]:
        results = self._in_parallel(self._choose, batch)
        self._stop_if_all_are_refused([answer.refused for answer in results])
        self._stop_without_logprobs(results)
        return results

    def _in_parallel(self, work: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT]:
        """Do all of ``items``, even if some fail, so that what was paid for is kept."""
        with ThreadPoolExecutor(self._config.max_parallel) as pool:
            futures = [pool.submit(work, item) for item in items]
        failures = [error for future in futures if (error := future.exception()) is not None]
        errors = [error for error in failures if isinstance(error, ServerError)]
        if len(errors) < len(failures):
            raise next(error for error in failures if not isinstance(error, ServerError))  # a mistake of ours
        results = [future.result() for future in futures if future.exception() is None]
        if errors:
            raise UnfinishedBatchError(self._failed(errors[0]), results)
        return results

    def _failed(self, error: ServerError) -> str:
        key = f"the key in {self._config.api_key_variable}"
        checked = key if error.status in (401, 403) else "the server and its base_url, which mostly ends in /v1"
        return (
            f"The server {self.name} failed ({error}); finished replies are kept: check {checked}, and run the same "
            "command again."
        )

    def _reply(self, request: Request) -> Completion:
        fields = _fields(
            self._config.model,
            _begun(request),
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed % 2**31,
        )
        try:
            reply = self._server.ask(fields)
        except RefusedError as error:
            self._refusal = str(error)
            return Completion(id=request.id, text="", num_tokens=0, finish="refused")
        return Completion(id=request.id, text=reply.text, num_tokens=reply.num_tokens, finish=reply.finish)

    def _choose(self, query: Query) -> Answer:
        assert not isinstance(query, ReplyQuery), "preflight refuses labellers that score given replies"
        fields = _fields(
            self._config.model,
            _with_instruction(query),
            max_tokens=1,
            temperature=0.0,
            logprobs=True,
            top_logprobs=20,
        )
        try:
            listed = self._server.ask(fields).listed
        except RefusedError as error:
            self._refusal = str(error)
            return Answer(id=query.id, logprobs=[NEVER] * len(query.choices), refused=True)
        if listed is not None:
            self._num_unlisted = None
        return Answer(id=query.id, logprobs=choice_logprobs(query.choices, listed or []))

    def _stop_if_all_are_refused(self, refused: Sequence[bool]) -> None:
        if self._num_refused is None or not all(refused):
            self._num_refused = None
            return
        self._num_refused += len(refused)
        if self._num_refused >= MOST_REFUSED:
            raise StageError(
                f"The server {self.name} refused each of the first {self._num_refused} requests ({self._refusal}); "
                "change the server or its model."
            )

    def _stop_without_logprobs(self, answers: Sequence[Answer]) -> None:
        if self._num_unlisted is None:
            return
        self._num_unlisted += sum(not answer.refused for answer in answers)
        if self._num_unlisted >= MOST_UNLISTED:
            raise StageError(
                f"The server {self.name} returns no log-probabilities, which the labellers ab, cot and pointwise read; "
                "use a server that does, such as vLLM, or a local model (engine=hf engine.path=FOLDER_OR_ID)."
            )


def choice_logprobs(choices: Sequence[str], listed: Sequence[tuple[str, float]]) -> list[float]:
    """The log-probability of each choice, from the likeliest first tokens; ``NEVER`` for all if none is listed.

    An unlisted choice is at most as likely as the least likely listed token, and as all unlisted tokens together. The
    smaller of these bounds is used.
    """
    best = dict.fromkeys(choices, NEVER)
    for token, logprob in listed:
        word = token.strip(" (\n").casefold()
        for choice in choices:
            if word == choice.strip().casefold():
                best[choice] = max(best[choice], logprob)
    if all(value == NEVER for value in best.values()):
        return list(best.values())
    rest = max(1 - math.fsum(math.exp(logprob) for _, logprob in listed), ROUNDING)
    bound = min(math.log(rest), *(logprob for _, logprob in listed))
    return [bound if value == NEVER else value for value in best.values()]


def _fields(model: str, messages: list[Message], **settings: Any) -> dict[str, Any]:
    whole = [Message(role=turn["role"], content=whole_characters(turn["content"])) for turn in messages]
    return {"model": model, "messages": whole, **settings}


def _begun(request: Request) -> list[Message]:
    """The request's turns; the prefix is the last turn, and servers that support it continue that turn."""
    begun = [Message(role="assistant", content=request.prefix)] if request.prefix else []
    return [*request.messages, *begun]


def _with_instruction(query: ChoiceQuery) -> list[Message]:
    """The query's turns with an instruction to answer in one word: a chat server can't continue ``opening``."""
    *before, last = query.messages
    words = " or ".join(choice.strip() for choice in query.choices)
    return [*before, Message(role=last["role"], content=f"{last['content']}\n\nAnswer only {words}.")]
