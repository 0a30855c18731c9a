"""Rollouts from a vLLM server of the run: it has the fixed weights, and gets the adapter as it is now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pipeline.core import distributed
from pipeline.core.errors import ConfigError, StageError
from pipeline.engines.addresses import NoServerError
from pipeline.engines.base import Request
from pipeline.engines.chat_server import RefusedError, Reply, read_reply
from pipeline.engines.encoding import Encoding
from pipeline.engines.live import Adapter, AdapterFolder, LiveEngine, LivePolicy, Sample
from pipeline.engines.models import generation_ends
from pipeline.engines.prompts import Post, TokenPrompts
from pipeline.engines.sender import Sender
from pipeline.engines.serving import LORA, Serving
from pipeline.engines.vllm import for_adapters, refuse_rank


@dataclass(frozen=True, kw_only=True)
class Drawn(Reply):
    """A reply with its token ids and their log-probabilities."""

    tokens: list[int]
    logprobs: list[float]


class ServedRollouts(LiveEngine):
    """Asks a server of the run, which must see the folder of the run under the same path."""

    asks_from_one_rank = True

    def __init__(self, policy: LivePolicy, serving: Serving, sender: Sender) -> None:
        self._serving, self._sender, self._adapters = serving, sender, AdapterFolder(policy)
        self._encoding = Encoding(policy.tokenizer, generation_ends(policy.base.path, None))
        self._prompts = TokenPrompts("", lambda: self._encoding.chat, "vllm")
        self._loaded = ""
        self.text_of = self._encoding.text_of

    @contextmanager
    def sampler(self) -> Iterator[ServedRollouts]:
        adapter = self._adapters.current()
        if distributed.is_main() and adapter.name != self._loaded:
            self._load(adapter)
            self._loaded = adapter.name
        yield self

    def _load(self, adapter: Adapter) -> None:
        """Each adapter has a name of its own, because vLLM keeps what it has computed by name and path."""
        self._sender.addresses.use(self._serving.url, lambda: self._serving.has_ended)
        body = {"lora_name": adapter.name, "lora_path": str(adapter.path.resolve()), "load_inplace": True}
        outcome = self._sender.send_one(Post("/load_lora_adapter", body, _loaded))
        if not isinstance(outcome, Reply):
            raise self._trouble(f"does not take the adapter {adapter.path}", outcome)

    def batches(self, asks: Sequence[Request]) -> list[list[Request]]:
        return [list(asks)] if asks else []

    def sample(self, batch: Sequence[Request]) -> list[Sample | None]:
        found: dict[str, Sample] = {}
        try:
            for sent in self._sender.send_all(batch, self._post):
                if not isinstance(sent.outcome, Drawn):
                    raise self._trouble(f"gives no reply to prompt {sent.item.id}", sent.outcome)
                tokens = sent.outcome.tokens
                found[sent.item.id] = Sample(
                    prompt=self._encoding.ids(sent.item),
                    reply=tokens,
                    ended=tokens[-1] in self._encoding.chat.stop_ids,
                    logprobs=sent.outcome.logprobs,
                )
        except NoServerError as error:
            raise self._trouble("answers no more", error) from None
        return [found[request.id] for request in batch]

    def _post(self, request: Request) -> Post:
        post = self._prompts.post(request)
        wanted = {"model": self._loaded, "logprobs": 0, "return_tokens_as_token_ids": True}
        return replace(post, body=post.body | wanted, read=read_drawn)

    def _trouble(self, what: str, why: object) -> StageError:
        words = f" Its last lines: {self._serving.last_lines}." if self._serving.has_ended else ""
        return StageError(
            f"The server of the policy {what} ({why}); checkpoints are kept: correct policy_engine.serve, and run the "
            f"same command again.{words}"
        )


def serving_options(lora_rank: int) -> dict[str, Any]:
    """The arguments of ``Serving`` for a vLLM server that takes adapters of this rank."""
    options = []
    for name, value in for_adapters(lora_rank).items():
        options += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    # Without the variable, vLLM has no /load_lora_adapter.
    return {"lora": options, "environment": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}}


def refuse_rollouts(field: str, command: str, scores: str, lora_rank: int) -> None:
    """Check that a server can take adapters, as far as its settings tell.

    Raises:
        ConfigError: it can't.
    """
    refuse_rank(field, lora_rank)
    if LORA not in command:
        raise ConfigError(
            f"{field}.serve is {command!r}, which has no {LORA} in it; write it where the command takes options: for "
            "rollouts it becomes those with which vLLM takes adapters."
        )
    if scores != "vllm":
        raise ConfigError(
            f"{field}.scores is {scores!r}, but of the servers only vLLM takes the adapters of rollouts; serve with it "
            f"and set {field}.scores=vllm, or use {field}=hf."
        )


def read_drawn(body: str) -> Drawn:
    """Read the text of an answer with HTTP status 200.

    Raises:
        RefusedError: it has no token ids or no log-probabilities, or is an error that another try would not change.
        ServerError: it is another error, or no reply.
    """
    reply = read_reply(body)
    try:
        listed = json.loads(body)["choices"][0]["logprobs"]
        pairs = list(zip(listed["tokens"], listed["token_logprobs"], strict=True))
        drawn = [(int(sign.removeprefix("token_id:")), float(logprob)) for sign, logprob in pairs]
    except (KeyError, TypeError, ValueError, AttributeError):
        drawn = []
    if not drawn:
        raise RefusedError("the answer has no token ids with log-probabilities, as vLLM gives them")
    return Drawn(**vars(reply), tokens=[token for token, _ in drawn], logprobs=[logprob for _, logprob in drawn])


def _loaded(text: str) -> Reply:
    return Reply(text=text, num_tokens=0, num_prompt_tokens=0, finish="stop", listed=None)
