"""What every engine can do, and the loop that drives it: batch by batch, each written to the log before the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pipeline.core import distributed
from pipeline.core.cache import RecordLog
from pipeline.core.distributed import LaunchConfig
from pipeline.core.log import Bar, Meter
from pipeline.core.settings import Registry, Settings
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


class EngineConfig(Settings):
    """Who answers."""

    kind: str
    """The engine."""

    @property
    def model_name(self) -> str | None:
        """What the model is called, where the engine has one of its own; None for the model that is aligned."""
        return None

    def check(self, field: str) -> None:
        """Refuse, before anything is spent, what can't answer. ``field`` is this section's path.

        Raises:
            ConfigError: names the field and the remedy.
        """


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model that the chain has made or was given, for an engine to run."""

    path: str
    revision: str | None = None
    precision: str = "auto"
    name: str


class EngineKind(ABC):
    """How to get an engine, and what it can do. Combinations with methods and labellers are checked from this."""

    name: ClassVar[str]
    Config: ClassVar[type[EngineConfig]]
    runs_weights: ClassVar[bool] = False
    """It can run a model folder of the chain, so it can write the policy's replies."""
    runs_live_model: ClassVar[bool] = False
    """It can draw rollouts from a model that is being trained (``over``)."""
    scores_replies: ClassVar[bool] = False
    """It can say how likely a given reply is (``ReplyQuery``)."""

    @staticmethod
    @abstractmethod
    def open(config: Any, weights: Weights, launch: LaunchConfig) -> Engine:
        """Start the engine. ``weights`` is the model of the chain, for engines that have none of their own."""

    @staticmethod
    def over(model: Any, tokenizer: Any, launch: LaunchConfig) -> Any:
        """An engine over a model in memory: its ``sample`` gives token ids. Only where ``runs_live_model``."""
        raise NotImplementedError


ENGINES: Registry[EngineKind] = Registry("engine", "kind")


def open_engine(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
    return ENGINES[config.kind].open(config, weights, launch)


class Logbook(Protocol):
    """Where answers are written down as they come, and what they cost. A stage's context is one."""

    meter: Meter

    def log(self, name: str) -> RecordLog: ...


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a classifier or reward model says of one text."""

    id: str
    score: float


ResultT = TypeVar("ResultT", Completion, Answer, Scored)


class Worklist(Generic[ResultT]):
    """Runs asks through an engine and remembers every result, so that a kill costs one batch at most."""

    def __init__(self, log: RecordLog, parse: Callable[..., ResultT], meter: Meter) -> None:
        self._log: RecordLog = log
        self._parse: Callable[..., ResultT] = parse
        self._meter = meter

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
                    with self._meter.running():
                        results = work(batch)
                    self._log.append(vars(result) for result in results)
                bar.advance(len(batch), cached=known)
        distributed.barrier()
        if distributed.world_size() > 1:
            self._log.reload()
        found = {row_id: self._parse(**self._log[row_id]) for row_id in ids}
        self._meter.num_calls += len(found)
        self._meter.num_tokens_written += sum(getattr(result, "num_tokens", 0) for result in found.values())
        return found


def generate_all(
    engine: Engine, label: str, requests: Sequence[Request], logbook: Logbook, log: str
) -> dict[str, Completion]:
    """A completion for each request, by id. Each finished batch is written to the log of that name."""
    if not requests:
        return {}
    return Worklist(logbook.log(log), Completion, logbook.meter).run(label, engine.batches(requests), engine.generate)


def score_all(engine: Engine, label: str, queries: Sequence[Any], logbook: Logbook, log: str) -> dict[str, Answer]:
    """An answer to each choice or reply query, by id; the two kinds never share a batch."""
    if not queries:
        return {}
    choices = engine.batches([query for query in queries if isinstance(query, ChoiceQuery)])
    replies = engine.batches([query for query in queries if isinstance(query, ReplyQuery)])
    return Worklist(logbook.log(log), Answer, logbook.meter).run(label, [*choices, *replies], engine.score)
