"""Replies and log-probabilities from servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pipeline.core.errors import StageError
from pipeline.engines.addresses import NoServerError
from pipeline.engines.base import Answer, Ask, Completion, Failure, Finish, Price, ReplyQuery, Request, StreamingEngine
from pipeline.engines.chat_server import RefusedError, Reply, ServerError
from pipeline.engines.probing import LackError, compare_tokens, probe
from pipeline.engines.prompts import Prompts
from pipeline.engines.sender import Sender
from pipeline.engines.serving import Serving

MOST_REFUSED = 20  # a run stops after this many refusals without any answer
MOST_UNSCORED = 8  # a run stops after this many queries without any log-probability
Result = Completion | Answer | Failure


class ServerEngine(StreamingEngine):
    """Asks one or several servers that have the same model.

    Args:
        name: the model's name in records.
        prompts: what to send for an ask.
        serving: the server that this engine starts itself; ``sender`` then has no addresses yet.
        key_variable: the environment variable with the key, for messages.
    """

    def __init__(
        self,
        sender: Sender,
        *,
        name: str,
        prompts: Prompts,
        serving: Serving | None = None,
        max_failed_share: float = 0.0,
        key_variable: str = "",
        price: Price | None = None,
    ) -> None:
        self.name, self.max_failed_share, self.price = name, max_failed_share, price
        self.asks_from_one_rank = serving is not None
        self._sender, self._prompts, self._serving, self._key_variable = sender, prompts, serving, key_variable
        self._has_answered = self._has_scored = False

    def answers(self, asks: Sequence[Ask]) -> Iterator[Result]:
        """Results without any use are held back until one has some: if none ever comes, none may stand in the log."""
        if (serving := self._serving) is not None:
            self._open(serving)
        refused, unscored = list[Result](), list[Result]()
        refusal = ""
        try:
            for sent in self._sender.send_all(asks, self._prompts.post):
                result = self._result(sent.item, sent.outcome)
                if isinstance(sent.outcome, RefusedError) and not self._has_answered:
                    refused.append(result)
                    refusal = str(sent.outcome)
                    self._stop_if_all_are_refused(len(refused), refusal)
                    continue
                if isinstance(sent.outcome, Reply):
                    self._has_answered = True
                    yield from _emptied(refused)
                if isinstance(result, Answer) and isinstance(sent.outcome, Reply) and not self._has_scored:
                    if not result.logprobs:
                        unscored.append(result)
                        self._stop_without_logprobs(len(unscored), sent.item)
                        continue
                    self._has_scored = True
                    yield from _emptied(unscored)
                yield result
        except NoServerError as error:
            raise StageError(self._no_server(error.error)) from None
        yield from [*refused, *unscored]

    def _open(self, serving: Serving) -> None:
        """Start the server if it does not run yet, and refuse one that can't do what the settings say."""
        is_open = serving.has_started
        self._sender.addresses.use(serving.url, lambda: serving.has_ended)
        if is_open:
            return
        try:
            probe(self._sender.send_one, serving.model_name, self._prompts, reads_choices=False)
            compare_tokens(self._sender.send_one, serving.model_name, self._prompts, unknown="")
        except LackError as lack:
            raise StageError(lack.sentence("", f"the server of {self.name}")) from None

    def _result(self, ask: Ask, outcome: Reply | RefusedError | ServerError) -> Result:
        if isinstance(outcome, ServerError):
            return Failure(id=ask.id, reason=_reason(outcome))
        if isinstance(ask, Request):
            if isinstance(outcome, RefusedError):
                finish: Finish = "too_long" if outcome.is_too_long else "refused"
                return Completion(id=ask.id, text="", num_tokens=0, finish=finish)
            return Completion(id=ask.id, text=outcome.text, finish=outcome.finish, **_counted(outcome))
        if isinstance(outcome, RefusedError):
            return Answer(id=ask.id, logprobs=[], refused=not outcome.is_too_long)
        return Answer(id=ask.id, logprobs=self._prompts.logprobs(ask, outcome) or [], **_counted(outcome))

    def _no_server(self, error: ServerError) -> str:
        if self._serving is not None and self._serving.has_ended:
            return (
                f"The server of {self.name} has ended; finished replies are kept: correct the command of serve, and "
                f"run again. Its last lines: {self._serving.last_lines}."
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

    def _stop_without_logprobs(self, number: int, ask: Ask) -> None:
        if number < MOST_UNSCORED:
            return
        if isinstance(ask, ReplyQuery):
            raise StageError(
                f"The server of {self.name} returns no log-probabilities of a given reply; correct scores (vllm or "
                "sglang), or use another labeller and no suite that scores replies."
            )
        raise StageError(
            f"The server of {self.name} returns no log-probabilities, which the labellers ab, cot, pointwise "
            "and request read; use a server that does, such as vLLM, or a local model (engine=hf "
            "engine.path=FOLDER_OR_ID), or let sampled answers decide (engine.votes=10)."
        )


ItemT = TypeVar("ItemT")


def _emptied(items: list[ItemT]) -> list[ItemT]:
    """The items, which the list loses."""
    taken = list(items)
    items.clear()
    return taken


def _counted(reply: Reply) -> Any:
    return {"num_tokens": reply.num_tokens, "num_prompt_tokens": reply.num_prompt_tokens}


def _reason(error: ServerError) -> str:
    """``HTTP 500: out of memory``"""
    known = error.status is None or str(error).startswith("HTTP ")
    return str(error) if known else f"HTTP {error.status}: {error}"
