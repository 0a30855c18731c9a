"""The interface of engines, and the loop that runs them. Each finished batch is written to the log before the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pipeline.core import distributed
from pipeline.core.cache import RecordLog
from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import StageError
from pipeline.core.log import Bar, Meter
from pipeline.core.settings import Registry, Settings
from pipeline.records import Message


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for one reply. The sample depends only on ``seed``, not on the batch; temperature 0 is greedy.

    ``prefix`` is the given beginning of the reply; the model continues after it.
    """

    id: str
    messages: list[Message]
    seed: int
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    prefix: str = ""


NEVER = -100.0  # the log-probability of a choice that a server does not list; it counts as unreadable
TOO_LONG = "the request does not fit the model's context"
Finish = Literal["stop", "length", "too_long", "refused"]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """``finish``: ``stop`` (the reply ended), ``length`` (cut off), ``too_long`` (the request did not fit the context),
    ``refused`` (the server refuses this request for good). The text of the last two is empty."""

    id: str
    text: str
    num_tokens: int
    finish: Finish

    @property
    def why_unanswered(self) -> str:
        """Why there is no reply; "" if there is one, even an empty one."""
        return {"too_long": TOO_LONG, "refused": "the server refuses this request"}.get(self.finish, "")


@dataclass(frozen=True, kw_only=True)
class ChoiceQuery:
    """Asks how likely each of ``choices`` is as the next word of a reply that begins with ``opening``."""

    id: str
    messages: list[Message]
    opening: str
    choices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReplyQuery:
    """Asks how likely (engines) or how good (reward models) a given reply is."""

    id: str
    messages: list[Message]
    reply: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """For a ChoiceQuery: the log-probability of each choice. For a ReplyQuery: one number, the mean per token.

    An answer without numbers is unreadable: the text does not fit the context.
    ``refused``: the server refuses this query for good, and the log-probabilities are those of an unreadable answer.
    """

    id: str
    logprobs: list[float]
    refused: bool = False

    @property
    def is_readable(self) -> bool:
        return max(self.logprobs, default=NEVER) > NEVER


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The score that a classifier or reward model gives to one text."""

    id: str
    score: float


ResultT = TypeVar("ResultT", Completion, Answer, Scored)


class UnfinishedBatchError(StageError):
    """Some asks of a batch failed. ``results`` are those of the others: they are logged before the run stops."""

    def __init__(self, sentence: str, results: Sequence[Completion] | Sequence[Answer]) -> None:
        super().__init__(sentence)
        self.results = results


Query = ChoiceQuery | ReplyQuery
AskT = TypeVar("AskT", Request, ChoiceQuery, ReplyQuery)


class Engine(Protocol):
    """Generates text and log-probabilities. ``batches`` depends only on the asks, so a resumed run repeats them.

    An engine whose results don't depend on the other rows of a batch may set ``rows_are_independent = True``: a resumed
    run then asks only for the rows that are not in the log.
    """

    name: str
    """The model's name in records."""

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]: ...

    def generate(self, batch: Sequence[Request]) -> list[Completion]: ...

    def score(self, batch: Sequence[Query]) -> list[Answer]: ...


class EngineConfig(Settings):
    """Settings of an engine."""

    kind: str
    """The engine."""

    @property
    def model_name(self) -> str | None:
        """The name of the engine's own model; None if the engine runs the model that is aligned."""
        return None

    def check(self, field: str) -> None:
        """Check before the run that the engine can answer. ``field`` is the path of this section.

        Raises:
            ConfigError: it can't; the message names the field and the remedy.
        """

    def reach(self, field: str) -> None:
        """Ask a server for one token, just before a run that needs it. ``cai plan`` does not call this.

        Raises:
            ConfigError: it does not answer; the message names the field and the remedy.
        """


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A model that an engine can run: the base model, or one that the chain trained."""

    path: str
    revision: str | None = None
    precision: str = "auto"
    name: str


class EngineKind(ABC):
    """Opens an engine and says what it can do. The checks of methods and labellers read these flags."""

    name: ClassVar[str]
    Config: ClassVar[type[EngineConfig]]
    runs_weights: ClassVar[bool] = False
    """It can run a model folder of the chain, so it can generate the policy's replies."""
    runs_live_model: ClassVar[bool] = False
    """It can generate rollouts with a model that is being trained (``over``)."""
    scores_replies: ClassVar[bool] = False
    """It can score a given reply (``ReplyQuery``)."""

    @staticmethod
    @abstractmethod
    def open(config: Any, weights: Weights, launch: LaunchConfig) -> Engine:
        """Start the engine. Engines without their own model run ``weights``."""

    @staticmethod
    def over(model: Any, tokenizer: Any, launch: LaunchConfig) -> Any:
        """Return an engine for a model in memory; its ``sample`` returns token ids. Only if ``runs_live_model``."""
        raise NotImplementedError

    @staticmethod  # noqa: B027 (most engines hold nothing)
    def release() -> None:
        """Free what engines of this kind hold beyond the stage that opened them. Called at the end of each stage."""


ENGINES: Registry[EngineKind] = Registry("engine", "kind")


def open_engine(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
    return ENGINES[config.kind].open(config, weights, launch)


class Logbook(Protocol):
    """Logs answers as they arrive and counts calls. A stage's ``Context`` implements it."""

    meter: Meter

    def log(self, name: str) -> RecordLog: ...


class Worklist(Generic[ResultT]):
    """Runs asks through an engine and logs every result, so a killed run loses at most one batch.

    Args:
        independent: a result does not depend on the other rows of its batch.
    """

    def __init__(self, log: RecordLog, parse: Callable[..., ResultT], meter: Meter, independent: bool = False) -> None:
        self._log: RecordLog = log
        self._parse: Callable[..., ResultT] = parse
        self._meter, self._independent = meter, independent

    def run(
        self,
        label: str,
        batches: Sequence[Sequence[Any]],
        work: Callable[[Sequence[Any]], list[ResultT]],
    ) -> dict[str, ResultT]:
        """Return ask id → result. Of n ranks, each one processes every n-th batch; all ranks return all results.

        A batch that is only partly in the log runs again as a whole, because the other rows of a batch can change the
        last bits of a log-probability. Rows that are already in the log are kept. Independent rows run only once.
        """
        ids = [ask.id for batch in batches for ask in batch]
        assert len(ids) == len(set(ids)), "asks must have distinct ids"
        mine = list(batches)[distributed.rank() :: distributed.world_size()]
        with Bar(label, sum(len(batch) for batch in mine), quiet=not distributed.is_main()) as bar:
            for batch in mine:
                missing = [ask for ask in batch if ask.id not in self._log]
                if missing:
                    self._work_on(missing if self._independent else batch, work)
                bar.advance(len(batch), cached=not missing)
        distributed.barrier()
        if distributed.world_size() > 1:
            self._log.reload()
        found = {row_id: self._parse(**self._log[row_id]) for row_id in ids}
        self._meter.num_calls += len(found)
        self._meter.num_tokens_written += sum(getattr(result, "num_tokens", 0) for result in found.values())
        return found

    def _work_on(self, batch: Sequence[Any], work: Callable[[Sequence[Any]], list[ResultT]]) -> None:
        try:
            with self._meter.running():
                results = work(batch)
        except UnfinishedBatchError as error:
            self._log.append(vars(result) for result in error.results)
            raise
        self._log.append(vars(result) for result in results)


def generate_all(
    engine: Engine, label: str, requests: Sequence[Request], logbook: Logbook, log: str
) -> dict[str, Completion]:
    """Return request id → completion. Each finished batch is appended to the log named ``log``."""
    if not requests:
        return {}
    work = Worklist(logbook.log(log), Completion, logbook.meter, _is_independent(engine))
    return work.run(label, engine.batches(requests), engine.generate)


def score_all(engine: Engine, label: str, queries: Sequence[Any], logbook: Logbook, log: str) -> dict[str, Answer]:
    """Return query id → answer. Choice queries and reply queries are in separate batches."""
    if not queries:
        return {}
    choices = engine.batches([query for query in queries if isinstance(query, ChoiceQuery)])
    replies = engine.batches([query for query in queries if isinstance(query, ReplyQuery)])
    work = Worklist(logbook.log(log), Answer, logbook.meter, _is_independent(engine))
    return work.run(label, [*choices, *replies], engine.score)


def _is_independent(engine: Engine) -> bool:
    return bool(getattr(engine, "rows_are_independent", False))
