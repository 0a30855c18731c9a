"""Replies and first-token log-probabilities from servers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pipeline.core.errors import StageError
from pipeline.core.text import whole_characters
from pipeline.engines.addresses import NoServerError
from pipeline.engines.base import NEVER, Answer, Ask, ChoiceQuery, Completion, Failure, Finish, Request, StreamingEngine
from pipeline.engines.chat_server import RefusedError, Reply, ServerError
from pipeline.engines.sender import Sender
from pipeline.engines.serving import Serving
from pipeline.records import Message

ROUNDING = 1e-6  # log-probabilities are rounded, so the listed tokens leave at least this much to the others
MOST_REFUSED = 20  # a run stops after this many refusals without any answer
MOST_UNLISTED = 8  # a run stops after this many choice queries without any log-probability
Result = Completion | Answer | Failure


class ServerEngine(StreamingEngine):
    """Asks one or several servers that have the same model.

    Args:
        name: the model's name in records.
        model: its name on the servers.
        serving: the server that this engine starts itself; ``sender`` then has no addresses yet.
        key_variable: the environment variable with the key, for messages.
    """

    def __init__(
        self,
        sender: Sender,
        *,
        name: str,
        model: str,
        serving: Serving | None = None,
        max_failed_share: float = 0.0,
        key_variable: str = "",
    ) -> None:
        self.name, self.max_failed_share = name, max_failed_share
        self.asks_from_one_rank = serving is not None
        self._sender, self._model, self._serving, self._key_variable = sender, model, serving, key_variable
        self._has_answered = self._has_listed = False

    def answers(self, asks: Sequence[Ask]) -> Iterator[Result]:
        """Results without any use are held back until one has some: if none ever comes, none may stand in the log."""
        if (serving := self._serving) is not None:
            self._sender.addresses.use(serving.url, lambda: serving.has_ended)
        refused, unlisted = list[Result](), list[Result]()
        refusal = ""
        try:
            for sent in self._sender.send_all(asks, self._fields):
                result = self._result(sent.item, sent.outcome)
                if isinstance(sent.outcome, RefusedError) and not self._has_answered:
                    refused.append(result)
                    refusal = str(sent.outcome)
                    self._stop_if_all_are_refused(len(refused), refusal)
                    continue
                if isinstance(sent.outcome, Reply):
                    self._has_answered = True
                    yield from _emptied(refused)
                if isinstance(sent.item, ChoiceQuery) and isinstance(sent.outcome, Reply) and not self._has_listed:
                    if sent.outcome.listed is None:
                        unlisted.append(result)
                        self._stop_without_logprobs(len(unlisted))
                        continue
                    self._has_listed = True
                    yield from _emptied(unlisted)
                yield result
        except NoServerError as error:
            raise StageError(self._no_server(error.error)) from None
        yield from [*refused, *unlisted]

    def _fields(self, ask: Ask) -> dict[str, Any]:
        """What is sent for an ask."""
        if isinstance(ask, Request):
            return chat_fields(
                self._model,
                _begun(ask),
                max_tokens=ask.max_new_tokens,
                temperature=ask.temperature,
                top_p=ask.top_p,
                seed=ask.seed % 2**31,
            )
        assert isinstance(ask, ChoiceQuery), "preflight refuses labellers that score given replies"
        return chat_fields(
            self._model, _with_instruction(ask), max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=20
        )

    def _result(self, ask: Ask, outcome: Reply | RefusedError | ServerError) -> Result:
        if isinstance(outcome, ServerError):
            return Failure(id=ask.id, reason=_reason(outcome))
        if isinstance(ask, Request):
            if isinstance(outcome, RefusedError):
                finish: Finish = "too_long" if outcome.is_too_long else "refused"
                return Completion(id=ask.id, text="", num_tokens=0, finish=finish)
            return Completion(id=ask.id, text=outcome.text, num_tokens=outcome.num_tokens, finish=outcome.finish)
        if isinstance(outcome, RefusedError):
            return Answer(id=ask.id, logprobs=[], refused=not outcome.is_too_long)
        assert isinstance(ask, ChoiceQuery)
        return Answer(id=ask.id, logprobs=choice_logprobs(ask.choices, outcome.listed or []))

    def _no_server(self, error: ServerError) -> str:
        if self._serving is not None and self._serving.has_ended:
            return (
                f"The server of {self.name} has ended; finished replies are kept: correct the command of serve, and "
                f"run again. Its last words: {self._serving.last_words}."
            )
        key = f"the key in {self._key_variable}"
        checked = key if error.status in (401, 403) else "the server and its base_url, which mostly ends in /v1"
        return (
            f"No server of {self.name} answers any more ({_reason(error)}); finished replies are kept: check "
            f"{checked}, and run the same command again."
        )

    def _stop_if_all_are_refused(self, number: int, refusal: str) -> None:
        if number >= MOST_REFUSED:
            raise StageError(
                f"The server of {self.name} refused each of the first {number} requests ({refusal}); change the server "
                "or its model."
            )

    def _stop_without_logprobs(self, number: int) -> None:
        if number >= MOST_UNLISTED:
            raise StageError(
                f"The server of {self.name} returns no log-probabilities, which the labellers ab, cot and pointwise "
                "read; use a server that does, such as vLLM, or a local model (engine=hf engine.path=FOLDER_OR_ID)."
            )


ItemT = TypeVar("ItemT")


def _emptied(items: list[ItemT]) -> list[ItemT]:
    """The items, which the list loses."""
    taken = list(items)
    items.clear()
    return taken


def _reason(error: ServerError) -> str:
    """``HTTP 500: out of memory``"""
    known = error.status is None or str(error).startswith("HTTP ")
    return str(error) if known else f"HTTP {error.status}: {error}"


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


def chat_fields(model: str, messages: Sequence[Message], **settings: Any) -> dict[str, Any]:
    """The fields of a request, with whole characters only."""
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
