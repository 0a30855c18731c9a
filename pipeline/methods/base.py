"""The interface of alignment methods: settings, inputs, checks, estimated cost and training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from pipeline.constitution.schema import Constitution
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.settings import Registry
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared
from pipeline.core.user_functions import function_identity, load_function
from pipeline.engines.classifiers import check_reward_model
from pipeline.engines.models import model_identity
from pipeline.engines.votes import cost_of_choices
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller
from pipeline.records import Message, Prompt, derived_rng
from pipeline.training.config import TrainConfig

if TYPE_CHECKING:
    from pipeline.chain.config import Config

REWARD_MODEL, CONSTITUTION, GROUP_VARIANCE = "reward_model", "constitution", "group_variance"
History = list[dict[str, Any]]


class AlignConfig(TrainConfig):
    """Settings of every method."""

    sees_groups: ClassVar[bool] = False
    """Whether the rewards see the replies to all groups of a template at once."""

    method: str
    """The method."""
    beta: float = Field(default=0.1, ge=0)
    """Keeps the policy near the reference: β of DPO, IPO and KTO, the KL coefficient of PPO, RLOO and GRPO."""
    rewards: dict[str, float] = Field(default={})
    """Reward → weight: ``reward_model``, ``constitution`` (it judges single replies), or a name in ``functions``. PPO,
    RLOO and GRPO also know ``group_variance`` (docs/fairness.md)."""
    functions: dict[str, str] = Field(default={})
    """Name → ``file.py:function`` or ``module:function``, called with prompts and completions."""
    reward_model: str | None = None
    """Folder or hub id of a published reward model; null: the model that the reward stage trains."""
    judge: Annotated[SerializeAsAny[LabellerConfig] | None, BeforeValidator(LABELLERS.parse_optional)] = None
    """The labeller that judges single replies for the ``constitution`` reward; null: ``likelihood``."""

    @field_validator("rewards")
    @classmethod
    def _drop_zero_weights(cls, rewards: dict[str, float]) -> dict[str, float]:
        return {name: weight for name, weight in rewards.items() if weight}

    @model_validator(mode="after")
    def _check_rewards(self) -> Self:
        known = (REWARD_MODEL, CONSTITUTION, *([GROUP_VARIANCE] if self.sees_groups else []), *self.functions)
        for name in self.rewards:
            if name not in known:
                raise ValueError(
                    f"{{here}}.rewards has {name!r}, which is not one of {', '.join(known)}; to use your own function, "
                    f"add {{here}}.functions.{name}=file.py:function"
                )
        for name, place in self.functions.items():
            if ":" not in place:
                raise ValueError(f"{{here}}.functions.{name} is {place!r}; write it as file.py:function")
        if self.reward_model is not None and REWARD_MODEL not in self.rewards:
            raise ValueError("{here}.reward_model is set but {here}.rewards.reward_model is not; give it a weight")
        if self.judge is not None and CONSTITUTION not in self.rewards:
            raise ValueError("{here}.judge is set but {here}.rewards.constitution is not; give it a weight")
        if self.judge is not None and not issubclass(LABELLERS[self.judge.kind], ReplyLabeller):
            single = [name for name in LABELLERS if issubclass(LABELLERS[name], ReplyLabeller)]
            raise ValueError(
                f"{{here}}.judge.kind is {self.judge.kind!r}, which only compares two replies; use "
                f"{' or '.join(single)}"
            )
        return self

    @property
    def reward_judge(self) -> LabellerConfig | None:
        """The judge of single replies if ``rewards`` has ``constitution``, otherwise None."""
        if CONSTITUTION not in self.rewards:
            return None
        return self.judge or LABELLERS.parse({"kind": "likelihood"})

    @property
    def trains_reward_model(self) -> bool:
        """Whether the rewards use the model of the reward stage."""
        return REWARD_MODEL in self.rewards and self.reward_model is None

    def key_of(self, name: str) -> Any:
        """In the cache key functions and reward models count by content; functions without a weight do not count."""
        if name == "functions":
            return {key: function_identity(place) for key, place in self.functions.items() if key in self.rewards}
        if name == "reward_model":
            return self.reward_model and model_identity(self.reward_model, None)
        if name == "judge":
            return self.reward_judge and self.reward_judge.key()
        return super().key_of(name)


class Method(ABC):
    """Aligns the SFT model. Subclasses have no state."""

    name: ClassVar[str]
    Config: ClassVar[type[AlignConfig]]
    reads_preferences: ClassVar[bool]
    """It trains on labelled comparisons; otherwise it samples replies to prompts and rewards them."""

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        """Check before the run what would fail in training. Returns warnings, one sentence each.

        Raises:
            ConfigError: the method can't run with these settings.
        """
        check_rewards(config)
        needs_pairs = self.reads_preferences or config.trains_reward_model
        if needs_pairs and prepared.config.preferences.compares_openings and not self.learns_from_openings(config):
            raise ConfigError(
                f"align.method is {self.name!r}, which needs whole replies, but preferences.pairs is 'openings'; use "
                "preferences=likelihood (or ab), or align=decide."
            )
        return []

    def learns_from_openings(self, config: Any) -> bool:
        """Whether pairs of beginnings (``preferences.pairs=openings``) are enough."""
        return False

    @abstractmethod
    def cost(self, config: Any, prepared: Prepared) -> Cost: ...

    def memory(self, config: Any, prepared: Prepared) -> Memory:
        """What training needs on one device."""
        return Memory()

    @abstractmethod
    def train(self, config: Any, context: Context) -> tuple[Metrics, History]:
        """Train from the SFT model, which is also the reference, and write ``model`` (and ``adapter``) to
        ``context.out``. In later rounds, the newest policy is in the folder of ``sft``.

        Returns:
            metrics, and one dict of numbers per logged step.
        """


METHODS: Registry[Method] = Registry("method", "method")


def method_of(config: Config) -> Method:
    return METHODS[config.align.method]()


def check_rewards(config: AlignConfig) -> None:
    """Call the user's reward functions on one reply, and check a published reward model.

    Raises:
        ConfigError: a function or the model can't give rewards.
    """
    from pipeline.engines.reward_model import check_scoring
    from pipeline.methods.rewards import checked

    for name in config.rewards.keys() & config.functions.keys():
        function = load_function(config.functions[name], f"align.functions.{name}")
        try:
            checked(name, function, [[Message(role="user", content="Hello.")]], ["Hello!"])
        except StageError as error:
            raise ConfigError(str(error)) from None
    if config.reward_model is not None:
        check_reward_model(config.reward_model, "align.reward_model")
        check_scoring(config.reward_model, None, "align.reward_model")


def num_steps(num_rows: int, config: TrainConfig) -> int:
    """The number of updates of a trainer over ``num_rows`` rows; the last batch is filled up."""
    return math.ceil(math.ceil(num_rows / config.global_batch_size) * config.num_epochs)


def judge_role(prepared: Prepared, num_queries: int, tokens: int) -> dict[str, Cost]:
    """The share of the constitution's judge in the cost; ``tokens``: read for one call."""
    [(field, engine)] = prepared.config.feedback_engines("preferences").items()
    return {field: cost_of_choices(engine, num_queries, tokens)} if num_queries else {}


def num_judge_calls(
    judge: LabellerConfig | None, prompts: Sequence[Prompt], constitution: Constitution, seed: int
) -> int:
    """The number of queries of the constitution's judge for one reply to each prompt."""
    if judge is None:
        return 0
    labeller = LABELLERS[judge.kind](judge, constitution, seed)
    assert isinstance(labeller, ReplyLabeller)
    asked = 0
    for prompt in prompts:
        drawn = constitution.sample(prompt.pool, judge.num_principles, derived_rng(seed, prompt.key, "labels"))
        asks = [ask for rule in drawn for ask in labeller.ask("x", "reply", prompt, "…", rule)]
        asked += len({ask.id for ask in asks})
    return asked
