"""The interface of a stage, and the context in which it runs.

A stage declares its inputs and outputs, what decides its result (``reads``), its checks before the run (``check``), its
cost (``cost``), and its work (``run``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.core import distributed
from pipeline.core.cache import WORK, RecordLog
from pipeline.core.log import Meter
from pipeline.core.settings import Settings, UndeclaredReadError, key_of
from pipeline.core.tracking import NoTracker, Tracker

if TYPE_CHECKING:
    from pipeline.chain.config import Config
    from pipeline.constitution.schema import Constitution
    from pipeline.core.distributed import LaunchConfig
    from pipeline.data.counterfactuals import CounterfactualSet
    from pipeline.data.sources import DataConfig
    from pipeline.engines.base import EngineConfig
    from pipeline.engines.models import ModelConfig
    from pipeline.evals.config import EvaluateConfig
    from pipeline.labellers.base import LabellerConfig
    from pipeline.records import Message, Prompt

Metrics = dict[str, Any]
ROUND = "-round-"
WEIGHTS = ("model/*.safetensors", "model/tokenizer.json", "model/chat_template.jinja")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Upper bounds for calls to engines, tokens written and training steps; tokens read are an estimate."""

    num_calls: int = 0
    num_tokens_written: int = 0
    num_tokens_read: int = 0
    num_tokens_repeated: int = 0
    """Of the tokens read: beginnings that many prompts share. Engines that keep prefixes compute them only once."""
    num_steps: int = 0
    roles: Mapping[str, Cost] = field(default_factory=dict)
    """Field of an engine → its share of the calls and tokens."""

    @classmethod
    def sum(cls, costs: Iterable[Cost], roles: Mapping[str, Cost] | None = None) -> Cost:
        costs = list(costs)
        names = ("num_calls", "num_tokens_written", "num_tokens_read", "num_tokens_repeated", "num_steps")
        return cls(**{name: sum(getattr(cost, name) for cost in costs) for name in names}, roles=roles or {})

    @classmethod
    def of_roles(cls, roles: Mapping[str, Cost]) -> Cost:
        """The cost of engines alone."""
        return cls.sum(roles.values(), roles)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a stage needs on one device, in GiB, without the process itself."""

    weights: float = 0.0
    optimiser: float = 0.0
    """Gradients and AdamW's two states of the trained weights, in 32 bits."""
    activations: float = 0.0
    """What the backward pass reads, and logits."""
    cache: float = 0.0
    """Keys and values of the tokens in a batch that generates."""
    kernels: float = 0.0
    """What oneDNN keeps of its compiled matrix products, on a CPU in 16 bits."""

    @property
    def lasting(self) -> float:
        """What no smaller batch makes smaller."""
        return self.weights + self.optimiser

    @property
    def total(self) -> float:
        return self.lasting + self.activations + self.cache + self.kernels


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a stage does with dialogues, for the check of their lengths before a run."""

    what: str
    """The stage and what it makes of them, such as ``critique: first replies``."""
    dialogues: Sequence[Sequence[Message]]
    reply_tokens: int
    """The most tokens of a reply."""
    most: int | None = None
    """The most tokens of a dialogue with its reply; None: the model's context."""
    field: str = ""
    """The field of the configuration that gives ``most``."""
    cuts_replies: bool = False
    """A reply that does not fit is cut; otherwise its dialogue is left out."""


@dataclass(frozen=True)
class Rendering:
    """What happens to the dialogues of one use. ``num_shortened``: a reply of full length would be cut."""

    what: str
    num_asked: int
    num_shortened: int
    num_left_out: int
    why: str
    longest: int
    """Tokens of the longest prompt that fits."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything known before the first stage: the checked configuration, the constitution and the prompts."""

    config: Config
    constitution: Constitution
    prompts: Sequence[Prompt]
    """With a copy of a training prompt in place of each one that the stage ``write`` is asked for."""
    stages: tuple[str, ...]
    """The stages that will run."""
    notes: list[str] = field(default_factory=list)
    """Warnings for the user."""
    rendering: list[Rendering] = field(default_factory=list)
    """What happens to the prompts of each use."""

    def longest_prompt(self, stage: str) -> int:
        """Tokens of the longest prompt of a stage; 0 if it has none."""
        return max((row.longest for row in self.rendering if row.what.startswith(f"{stage}:")), default=0)


def stage_of(task: str) -> str:
    """The stage of a task: of ``align-round-2`` it is ``align``."""
    return task.partition(ROUND)[0]


class Stage(ABC):
    """One step of the chain. Subclasses are stateless."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Increase it when new code gives other records: results of the old code are then not reused."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The stages whose folders it reads."""
    outputs: ClassVar[tuple[str, ...]]
    """Glob patterns of the files that later stages read. Later cache keys hold the hash of these files."""
    section: ClassVar[str] = ""
    """Its section of the configuration; empty: the same as its name."""
    parallel: ClassVar[bool] = True
    """Whether it can run on several processes."""
    reads_whole_inputs: ClassVar[bool] = False
    """Its cache key holds the cache keys of its inputs, because it also reads their metrics."""
    trains: ClassVar[bool] = True
    """False: it also runs in ``cai evaluate``."""
    repeats: ClassVar[bool] = False
    """It runs in each round (``rounds``). What it knows as the folder of ``sft`` is then that of the newest policy."""
    first_round: ClassVar[int] = 1
    """It does not run in earlier rounds."""
    reads_every_round: ClassVar[bool] = False
    """It reads the folders of all rounds, by the names of their tasks; other stages read only the newest."""

    def config(self, config: Config) -> Any:
        """The stage's own section."""
        return getattr(config, self.section or self.name, Settings())

    def wanted(self, config: Config) -> bool:
        """Whether a run with this configuration needs its outputs."""
        return not (self.trains and config.evaluate.checkpoints)

    def needed(self, config: Config) -> tuple[str, ...]:
        """The stages whose folders it reads under this configuration."""
        return self.needs

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        """Attribute of the context → value: everything that decides the result, except its own section and its inputs.
        Use ``part`` if only some fields of a value are read."""
        return {}

    def check(self, prepared: Prepared) -> list[str]:
        """Refuse what would fail later. Returns warnings.

        Raises:
            ConfigError: one sentence with the field, the value and the remedy.
        """
        return []

    def engines(self, config: Config) -> dict[str, EngineConfig]:
        """Field → engine, for the engines whose answers it needs. They are asked once before the run."""
        return {}

    def read_choices(self, config: Config) -> set[str]:
        """The fields of ``engines`` whose answers to choice queries it reads."""
        return set()

    def uses(self, prepared: Prepared) -> list[Use]:
        """The dialogues that it will render with the model's chat template."""
        return []

    def cost(self, prepared: Prepared) -> Cost:
        """An upper bound, if nothing is cached."""
        return Cost()

    def memory(self, prepared: Prepared) -> Memory:
        """What it needs on one device. ``prepared.rendering`` has the lengths of the prompts."""
        return Memory()

    @abstractmethod
    def run(self, config: Any, context: Context) -> Metrics:
        """Write the outputs to ``context.out`` and return metrics. ``config`` is the stage's own section."""


def key_fields(stage: Stage, config: Config, constitution: Constitution, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Everything that decides a stage's result, as plain JSON. The cache key is the hash of this.

    Args:
        inputs: stage → content hash of its outputs.
    """
    return {
        "stage": stage.name,
        "version": stage.version,
        "config": stage.config(config).key(),
        "reads": {name: key_of(value) for name, value in stage.reads(config, constitution).items()},
        "inputs": dict(inputs),
    }


class Context:
    """What a stage may read besides its own section.

    ``out``, ``launch``, ``tracker`` and ``meter`` say where and how it runs, and ``policy`` what its policy is called:
    ``sft``, or the task that aligned it (in ``folders`` it is ``sft`` in all rounds). All other attributes are the
    values that ``reads`` declares; an undeclared one raises ``UndeclaredReadError``.
    """

    if TYPE_CHECKING:  # declared by the stages that read them
        model: ModelConfig
        data: DataConfig
        suites: EvaluateConfig
        engine: EngineConfig
        critic: EngineConfig
        policy_engine: EngineConfig
        constitution: Constitution
        labeller: LabellerConfig
        labels: str
        seed: int
        guidelines: Any
        reward_init: str
        deviations: list[str]
        preset: str
        checkpoints: dict[str, str]
        counterfactuals: list[CounterfactualSet]

    def __init__(
        self,
        *,
        stage: str,
        reads: Mapping[str, Any],
        folders: Mapping[str, Path],
        out: Path,
        launch: LaunchConfig,
        tracker: Tracker | None = None,
        meter: Meter | None = None,
        policy: str = "sft",
    ) -> None:
        self._stage, self._reads, self._folders = stage, dict(reads), dict(folders)
        self.out, self.launch, self.policy = out, launch, policy
        self.tracker: Tracker = tracker or NoTracker()
        self.meter = meter or Meter()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._reads:
            raise UndeclaredReadError(f"The stage {self._stage} reads {name!r}, which its reads() does not declare.")
        return self._reads[name]

    def has(self, name: str) -> bool:
        """Whether ``reads`` declares a value under this name."""
        return name in self._reads

    @property
    def folders(self) -> dict[str, Path]:
        """Stage → folder of the finished stages that this one needs."""
        return dict(self._folders)

    def folder(self, stage: str) -> Path:
        """The folder of a finished stage. Raises UndeclaredReadError for a stage that this one does not need."""
        if stage not in self._folders:
            raise UndeclaredReadError(f"The stage {self._stage} reads the folder of {stage!r}, which it does not need.")
        return self._folders[stage]

    @property
    def work(self) -> Path:
        """Folder for logs and checkpoints of the unfinished stage; removed when the stage has finished."""
        return self.out / WORK

    def log(self, name: str) -> RecordLog:
        """An append-only log in ``work``."""
        return RecordLog(self.work, name, distributed.rank())
