"""A policy in training, and the engines that sample replies from it."""

from __future__ import annotations

import itertools
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.core import distributed
from pipeline.core.cache import hash_file

if TYPE_CHECKING:
    from pipeline.engines.base import Request, Weights

_numbers = itertools.count(1)  # of all adapters of this process: vLLM keeps what it has loaded under a number


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Token ids of a prompt and of its sampled reply. ``ended``: the reply's last token is an end token.

    ``logprobs``: the engine's log-probability of each token of the reply, at the temperature of the request; None if
    the engine computes with the trainer's own model.
    """

    prompt: list[int]
    reply: list[int]
    ended: bool
    logprobs: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class LivePolicy:
    """What an engine may know of a policy in training."""

    tokenizer: Any
    model: Callable[[], AbstractContextManager[Any]]
    """The block in which the model in memory is the policy, with all weights. Call on every rank."""
    base: Weights
    """The weights under the adapter. They stay as they are."""
    lora_rank: int
    write_adapter: Callable[[Path], None]
    """Writes the policy's adapter to a folder, in peft's format."""
    folder: Path
    """Where adapters are written."""


class Sampler(Protocol):
    """Samples replies while the policy stays as it is."""

    def batches(self, asks: Sequence[Request]) -> list[list[Request]]: ...

    def sample(self, batch: Sequence[Request]) -> list[Sample | None]:
        """One sample for each request; None if the request does not fit the context."""

    def text_of(self, tokens: Sequence[int]) -> str: ...


class LiveEngine(ABC):
    """Samples replies from a policy in training."""

    asks_from_one_rank: bool = False
    """Only the first rank asks, for all; otherwise each of n ranks asks every n-th request."""

    @abstractmethod
    def sampler(self) -> AbstractContextManager[Sampler]:
        """A block with the policy as it is now. Call on every rank."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter on the disk. Its name follows from its weights, so no cache can take it for another one."""

    name: str
    number: int
    """Never used for another adapter in this process."""
    path: Path


class AdapterFolder:
    """Writes the adapter of a policy before replies are sampled. Only the newest is kept."""

    def __init__(self, policy: LivePolicy) -> None:
        self._policy = policy
        self._newest: Adapter | None = None

    def current(self) -> Adapter:
        """The adapter as it is now. Call on every rank; all of them get the same files."""
        name = distributed.from_main(self._write)
        if self._newest is None or self._newest.name != name:
            self._newest = Adapter(name=name, number=next(_numbers), path=self._policy.folder / name)
        return self._newest

    def _write(self) -> str:
        folder = self._policy.folder
        draft = folder / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        self._policy.write_adapter(draft)
        name = f"policy-{hash_file(draft / 'adapter_model.safetensors')[:16]}"
        for old in folder.glob("policy-*"):
            shutil.rmtree(old)
        draft.rename(folder / name)
        return name
