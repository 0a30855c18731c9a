"""What every engine can do, and the loop that drives it: batch by batch, each written down before the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from pipeline.core import distributed
from pipeline.core.cache import RecordLog
from pipeline.core.log import Bar
from pipeline.records import Message


@dataclass(frozen=True, kw_only=True)
class Request:
    """Ask for one reply. ``seed`` alone decides the draw, whatever else is in the batch; temperature 0 is greedy.

    ``prefix`` begins the reply for the model; the completion goes on after it.
    """

    id: str
    messages: list[Message]
    seed: int
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """``finish``: ``stop`` (the model ended), ``length`` (cut off), ``too_long`` (did not fit the context)."""

    id: str
    text: str
    num_tokens: int
    finish: Literal["stop", "length", "too_long"]


@dataclass(frozen=True, kw_only=True)
class ChoiceQuery:
    """Ask which of a few words comes next, after the reply has been begun with ``opening``."""

    id: str
    messages: list[Message]
    opening: str
    choices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReplyQuery:
    """Ask how likely, or how good, a given reply is."""

    id: str
    messages: list[Message]
    reply: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """To a ChoiceQuery: log-probability of each choice. To a ReplyQuery: one number, the mean per token."""

    id: str
    logprobs: list[float]


Query = ChoiceQuery | ReplyQuery
AskT = TypeVar("AskT", Request, ChoiceQuery, ReplyQuery)


class Engine(Protocol):
    """Text and log-probabilities. Batches are a function of the asks alone, so a resumed run repeats them."""

    name: str
    """Identifies the model for lineage."""

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]: ...

    def generate(self, batch: Sequence[Request]) -> list[Completion]: ...

    def score(self, batch: Sequence[Query]) -> list[Answer]: ...


class Stopwatch:
    """Adds up the time spent generating, scoring and training, apart from everything around it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a classifier or reward model says of one text."""

    id: str
    score: float


ResultT = TypeVar("ResultT", Completion, Answer, Scored)


class Worklist(Generic[ResultT]):
    """Runs asks through an engine and remembers every result, so that a kill costs one batch at most."""

    def __init__(self, log: RecordLog, parse: Callable[..., ResultT], watch: Stopwatch) -> None:
        self._log: RecordLog = log
        self._parse: Callable[..., ResultT] = parse
        self._watch: Stopwatch = watch

    def run(
        self,
        label: str,
        batches: Sequence[Sequence[Any]],
        work: Callable[[Sequence[Any]], list[ResultT]],
    ) -> dict[str, ResultT]:
        """Return a result for every ask. Each rank works on every n-th batch; all ranks return all results.

        A batch that was only partly written down is repeated whole, because who shares a batch can change the last
        bits of a log-probability; the rows that were already there win.
        """
        ids = [ask.id for batch in batches for ask in batch]
        assert len(ids) == len(set(ids)), "asks must have distinct ids"
        mine = list(batches)[distributed.rank() :: distributed.world_size()]
        with Bar(label, sum(len(batch) for batch in mine), quiet=not distributed.is_main()) as bar:
            for batch in mine:
                known = all(ask.id in self._log for ask in batch)
                if not known:
                    with self._watch.running():
                        results = work(batch)
                    self._log.append(vars(result) for result in results)
                bar.advance(len(batch), cached=known)
        distributed.barrier()
        if distributed.world_size() > 1:
            self._log.reload()
        return {row_id: self._parse(**self._log[row_id]) for row_id in ids}


def generate_all(
    engine: Engine, label: str, requests: Sequence[Request], log: RecordLog, watch: Stopwatch
) -> dict[str, Completion]:
    return Worklist(log, Completion, watch).run(label, engine.batches(requests), engine.generate)


def score_all(
    engine: Engine, label: str, queries: Sequence[Any], log: RecordLog, watch: Stopwatch
) -> dict[str, Answer]:
    """Answer choice and reply queries; the two kinds never share a batch."""
    choices = engine.batches([query for query in queries if isinstance(query, ChoiceQuery)])
    replies = engine.batches([query for query in queries if isinstance(query, ReplyQuery)])
    return Worklist(log, Answer, watch).run(label, [*choices, *replies], engine.score)
