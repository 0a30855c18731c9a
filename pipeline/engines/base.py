"""The interface of engines, and what they are asked. ``worklist.py`` has the loops that run them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import Field

from pipeline.core.cache import FAILED
from pipeline.core.distributed import LaunchConfig
from pipeline.core.settings import RUNTIME, Registry, Settings
from pipeline.records import Message

if TYPE_CHECKING:
    from pipeline.engines.live import LiveEngine, LivePolicy


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
NO_ANSWER = "the server did not answer this request"
Finish = Literal["stop", "length", "too_long", "refused", "failed"]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """``finish``: ``stop`` (the reply ended), ``length`` (cut off), ``too_long`` (the request did not fit the context),
    ``refused`` (the server refuses this request for good), ``failed`` (it did not answer, and the settings let the run
    go on). The text of the last three is empty. ``num_prompt_tokens`` is 0 where the engine does not count them."""

    id: str
    text: str
    num_tokens: int
    finish: Finish
    num_prompt_tokens: int = 0

    @property
    def why_unanswered(self) -> str:
        """Why there is no reply; "" if there is one, even an empty one."""
        why = {"too_long": TOO_LONG, "refused": "the server refuses this request", "failed": NO_ANSWER}
        return why.get(self.finish, "")

    @classmethod
    def unanswered(cls, row_id: str) -> Completion:
        return cls(id=row_id, text="", num_tokens=0, finish="failed")


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
    ``refused``: the server refuses this query for good. ``failed``: it did not answer, and the settings let the run go
    on. Both are unreadable.
    """

    id: str
    logprobs: list[float]
    refused: bool = False
    failed: bool = False
    num_tokens: int = 0
    num_prompt_tokens: int = 0

    @property
    def is_readable(self) -> bool:
        return max(self.logprobs, default=NEVER) > NEVER

    @classmethod
    def unanswered(cls, row_id: str) -> Answer:
        return cls(id=row_id, logprobs=[], failed=True)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A request that has no answer after its last try. It is logged with its reason, and the next run asks again."""

    id: str
    reason: str
    finish: Literal["failed"] = FAILED


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The score that a classifier or reward model gives to one text."""

    id: str
    score: float


Query = ChoiceQuery | ReplyQuery
Ask = Request | ChoiceQuery | ReplyQuery
AskT = TypeVar("AskT", Request, ChoiceQuery, ReplyQuery)


class BatchEngine(Protocol):
    """Runs a model in this process. ``batches`` depends only on the asks, so a resumed run repeats them.

    An engine whose results don't depend on the other rows of a batch may set ``rows_are_independent = True``: a resumed
    run then asks only for the rows that are not in the log.
    """

    name: str
    """The model's name in records."""

    def batches(self, asks: Sequence[AskT]) -> list[list[AskT]]: ...

    def generate(self, batch: Sequence[Request]) -> list[Completion]: ...

    def score(self, batch: Sequence[Query]) -> list[Answer]: ...


class Price(Settings):
    """What a million tokens cost, in any currency."""

    input: Annotated[float, RUNTIME] = Field(ge=0)
    """Of prompts."""
    output: Annotated[float, RUNTIME] = Field(ge=0)
    """Of replies."""

    def of(self, num_read: int, num_written: int) -> float:
        return (num_read * self.input + num_written * self.output) / 1e6


class StreamingEngine(ABC):
    """Answers each ask on its own, in any order, such as a server that gets many requests at the same time.

    To add one, write a sub-class with ``answers``. It gets all asks that have no answer yet, and yields a result as
    soon as it has one; each is written to the log at once, so a killed run loses only what was under way. It yields a
    ``Failure`` for an ask that it gives up, and raises ``StageError`` if no ask can be answered.
    """

    name: str
    """The model's name in records; never an address."""
    max_failed_share: float = 0.0
    """The run goes on if at most this share of the asks of one worklist has failed."""
    price: Price | None = None
    """What its tokens cost; None: nothing, or it is not known."""
    num_votes: int = 0
    """A choice query is answered by so many sampled replies; 0: by log-probabilities."""
    asks_from_one_rank: bool = False
    """Only the first rank asks; otherwise each of n ranks asks every n-th ask."""

    @abstractmethod
    def answers(self, asks: Sequence[Ask]) -> Iterator[Completion | Answer | Failure]:
        """Yield one result for each ask: ``Completion`` for a ``Request``, ``Answer`` for a query, or ``Failure``."""


Engine = BatchEngine | StreamingEngine
"""What generates text and computes log-probabilities."""


def chooser(engine: Engine) -> str:
    """The name in records of an engine that answers choice queries."""
    num_votes = getattr(engine, "num_votes", 0)
    return f"{engine.name} ({num_votes} votes)" if num_votes else engine.name


class EngineConfig(Settings):
    """Settings of an engine."""

    kind: str
    """The engine."""

    @property
    def model_name(self) -> str | None:
        """The name of the engine's own model; None if the engine runs the model that is aligned."""
        return None

    @property
    def identity(self) -> str:
        """What its own model is, in whatever way it runs: by content where the run has its weights."""
        return str(self.key())

    @property
    def price(self) -> Price | None:
        """What its tokens cost; None: nothing, or it is not known."""
        return None

    @property
    def runs_weights(self) -> bool:
        """Whether it runs the model folders of the chain, so that it can generate the policy's replies."""
        return False

    @property
    def scores_replies(self) -> bool:
        """Whether it can score a given reply (``ReplyQuery``)."""
        return False

    @property
    def num_votes(self) -> int:
        """It answers a choice query by so many sampled replies; 0: by log-probabilities."""
        return 0

    @property
    def starts_a_server(self) -> bool:
        """Whether it starts a server of its own, in the process that asks."""
        return False

    def check(self, field: str) -> None:
        """Check before the run that the engine can answer. ``field`` is the path of this section.

        Raises:
            ConfigError: it can't; the message names the field and the remedy.
        """

    def check_rollouts(self, field: str, lora_rank: int, launch: LaunchConfig) -> None:
        """Check before the run that the engine can sample from a model in training (``EngineKind.runs_live_model``).

        Args:
            lora_rank: of the adapter that is trained.

        Raises:
            ConfigError: it can't; the message names the field and the remedy.
        """

    def reach(self, field: str, reads_choices: bool = False) -> None:
        """Ask a server for one token, just before a run that needs it. ``cai plan`` does not call this.

        Args:
            reads_choices: its answers to choice queries are read.

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
    """Opens an engine and says what it can do. Checks read these flags and those of its settings."""

    name: ClassVar[str]
    Config: ClassVar[type[EngineConfig]]
    runs_live_model: ClassVar[bool] = False
    """It can sample from a model that is being trained (``over``)."""
    takes_adapters: ClassVar[bool] = False
    """From a model that is being trained, it gets the adapter alone, after each update."""
    opens_one: ClassVar[bool] = False
    """A process can hold only one model of this kind at a time."""

    @staticmethod
    @abstractmethod
    def open(config: Any, weights: Weights, launch: LaunchConfig) -> Engine:
        """Start the engine. Engines without their own model run ``weights``."""

    @staticmethod
    def over(config: Any, policy: LivePolicy, launch: LaunchConfig) -> LiveEngine:
        """Return an engine that samples from a policy in training. Only if ``runs_live_model``."""
        raise NotImplementedError

    @staticmethod  # noqa: B027 (most engines hold nothing)
    def release() -> None:
        """Free what engines of this kind hold beyond the stage that opened them. Called at the end of each stage."""


ENGINES: Registry[EngineKind] = Registry("engine", "kind")


def open_engine(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
    """Open an engine. What engines of other kinds hold, such as most of a GPU, is freed; they take it again if used."""
    for other in ENGINES:
        if other != config.kind:
            ENGINES[other].release()
    return ENGINES[config.kind].open(config, weights, launch)
