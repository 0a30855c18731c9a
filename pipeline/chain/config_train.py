"""The configuration of the stages that train: supervised fine-tuning, the reward model, and alignment by any method."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.chain.config_evaluate import PairsConfig
from pipeline.core.checks import one_of, within
from pipeline.core.errors import ConfigError

PAIR_METHODS = ("dpo", "ipo", "kto")
ONLINE_METHODS = ("ppo", "rloo", "grpo")
REWARD_MODEL, CONSTITUTION = "reward_model", "constitution"


@dataclass(kw_only=True)
class TrainConfig:
    """What any training stage sets. The global batch is fixed here; how it is divided follows the hardware."""

    num_epochs: float
    learning_rate: float
    global_batch_size: int
    max_length_tokens: int
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lr_schedule: str = "cosine"
    save_every_steps: int = 10

    section = "train"

    def __post_init__(self) -> None:
        within(f"{self.section}.num_epochs", self.num_epochs, 0)
        within(f"{self.section}.learning_rate", self.learning_rate, 0, 1)
        within(f"{self.section}.global_batch_size", self.global_batch_size, 1)
        within(f"{self.section}.max_length_tokens", self.max_length_tokens, 64)
        within(f"{self.section}.weight_decay", self.weight_decay, 0)
        within(f"{self.section}.max_grad_norm", self.max_grad_norm, 0)
        within(f"{self.section}.warmup_fraction", self.warmup_fraction, 0, 0.99)
        within(f"{self.section}.save_every_steps", self.save_every_steps, 1)
        one_of(f"{self.section}.lr_schedule", self.lr_schedule, ("cosine", "linear", "constant"))


@dataclass(kw_only=True)
class SftConfig(TrainConfig):
    revisions: str = "all"
    helpful_ratio: float = 1.0
    worked_examples: bool = True
    num_contrasts: int | None = None
    """How many of the constitution's contrasts to teach with them; null: all."""

    section = "sft"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("sft.revisions", self.revisions, ("all", "last"))
        within("sft.helpful_ratio", self.helpful_ratio, 0)


@dataclass(kw_only=True)
class HumanPairsConfig(PairsConfig):
    """Comparisons that people decided, beside the AI's: none, or a file or hub set in any layout that
    ``evaluate.pairs`` reads."""

    source: str = "none"

    section = "reward.human"
    sources = ("none", "path", "hub")


@dataclass(kw_only=True)
class RewardConfig(TrainConfig):
    """A Bradley-Terry model of the labels, trained on harmlessness and helpfulness comparisons."""

    init: str = "sft"
    """Start from the SFT model (PPO then needs one base for everything) or from the base model."""
    helpful_ratio: float = 1.0
    """At most so many helpfulness comparisons (ordinary requests and look-alikes) for each harmlessness comparison."""
    human: HumanPairsConfig = field(default_factory=HumanPairsConfig)
    hard_labels: bool = False
    held_out_fraction: float = 0.2
    center_coefficient: float = 0.01
    """Weight of the squared sum of a pair's rewards in the loss: keeps them near zero (arXiv 2312.09244, eq. 2)."""

    section = "reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("reward.init", self.init, ("sft", "base"))
        within("reward.helpful_ratio", self.helpful_ratio, 0)
        within("reward.held_out_fraction", self.held_out_fraction, 0.05, 0.5)
        within("reward.center_coefficient", self.center_coefficient, 0)


@dataclass(kw_only=True)
class RolloutConfig:
    """Replies that an online method samples from the policy, and the prompts it samples them for."""

    num_red_team: int = 64
    num_ordinary: int = 64
    num_look_alike: int = 32
    temperature: float = 1.0
    max_reply_tokens: int = 48
    missing_eos_penalty: float | None = 1.0
    """Taken from the score of a reply that was cut off; null takes nothing."""
    drop_truncated: bool = False
    """Leave replies that were cut off out of the loss altogether."""
    num_replies: int = 4
    """RLOO and GRPO: replies to each prompt, each other's baseline."""
    num_held_out: int = 32
    """Prompts of the validation split on which the policy is measured before, during and after."""
    held_out_every_steps: int = 8
    show_every_steps: int = 4
    """How often a table of sample replies goes to the dashboard."""

    def __post_init__(self) -> None:
        for pool in ("num_red_team", "num_ordinary", "num_look_alike"):
            within(f"align.rollout.{pool}", getattr(self, pool), 0)
        if self.num_red_team + self.num_ordinary + self.num_look_alike == 0:
            raise ConfigError("align.rollout.num_red_team, num_ordinary and num_look_alike are all 0; ask something.")
        within("align.rollout.temperature", self.temperature, 0.05, 5)
        if self.missing_eos_penalty is not None:
            within("align.rollout.missing_eos_penalty", self.missing_eos_penalty, 0)
        within("align.rollout.num_replies", self.num_replies, 2)
        within("align.rollout.num_held_out", self.num_held_out, 2)
        for name in ("max_reply_tokens", "held_out_every_steps", "show_every_steps"):
            within(f"align.rollout.{name}", getattr(self, name), 1)


@dataclass(kw_only=True)
class PpoConfig:
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) as RLHF uses it."""

    num_minibatches: int = 4
    num_passes: int = 2
    """How often each rollout is trained on (PPO's epochs)."""
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_learning_rate: float = 1.0e-4
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_advantages: bool = True
    kl_estimator: str = "k1"
    kl_controller: str = "fixed"
    target_kl: float = 4.0
    """Nats a reply that the adaptive controller steers to."""
    kl_horizon_episodes: int = 512
    normalise_scores: bool = False
    """Divide scores by their running standard deviation."""
    clip_score: float | None = 5.0
    value_from_reward: bool = True
    """Start the value model from the reward model, where it shares the base."""
    max_kl: float | None = 20.0
    """Nats a reply; above, the step is not kept."""
    min_entropy: float | None = None
    """Nats a token; below, the policy has collapsed and the step is not kept."""
    out_of_bounds: str = "rollback"
    max_rollbacks: int = 2

    def __post_init__(self) -> None:
        for name in ("num_minibatches", "num_passes", "kl_horizon_episodes"):
            within(f"align.ppo.{name}", getattr(self, name), 1)
        for name in ("clip_range", "value_clip_range", "target_kl"):
            within(f"align.ppo.{name}", getattr(self, name), 1e-6)
        within("align.ppo.value_learning_rate", self.value_learning_rate, 0, 1)
        for name in ("gamma", "gae_lambda"):
            within(f"align.ppo.{name}", getattr(self, name), 0, 1)
        one_of("align.ppo.kl_estimator", self.kl_estimator, ("k1", "k2", "k3"))
        one_of("align.ppo.kl_controller", self.kl_controller, ("fixed", "adaptive"))
        one_of("align.ppo.out_of_bounds", self.out_of_bounds, ("stop", "rollback"))
        within("align.ppo.max_rollbacks", self.max_rollbacks, 0)
        for name in ("clip_score", "max_kl", "min_entropy"):
            if (value := getattr(self, name)) is not None:
                within(f"align.ppo.{name}", value, 0)


@dataclass(kw_only=True)
class AlignConfig(TrainConfig):
    """Alignment by pairs (DPO, IPO, KTO) or by rollouts and rewards (PPO, RLOO, GRPO).

    ``rewards`` is a weighted sum by name: ``reward_model`` (the reward stage's, or ``reward_model``), ``constitution``
    (the judge asked directly), or a name in ``functions``. Methods on pairs use the AI's labels while it is empty.
    """

    method: str = "dpo"
    beta: float = 0.1
    """The pull to the reference: β of DPO, IPO and KTO; the coefficient of the KL penalty of PPO, RLOO and GRPO."""
    hard_labels: bool = False
    min_confidence: float = 0.0
    num_reply_tokens: int | None = None
    """DPO and IPO: only the first so many tokens of each reply count. Whether to help is said there."""
    rewards: dict[str, float] = field(default_factory=lambda: {REWARD_MODEL: 0.0, CONSTITUTION: 0.0})
    functions: dict[str, str] = field(default_factory=dict)
    """Name → ``file.py:function`` or ``module:function``, called with prompts and completions."""
    reward_model: str | None = None
    """A reward model of another make, in place of the one that the reward stage would train."""
    judge: str = "likelihood"
    """How the constitution's judge is asked of a single reply: ``likelihood`` or ``pointwise``."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)

    section = "align"
    methods: ClassVar[tuple[str, ...]] = PAIR_METHODS + ONLINE_METHODS

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("align.method", self.method, self.methods)
        one_of("align.judge", self.judge, ("likelihood", "pointwise"))
        within("align.min_confidence", self.min_confidence, 0, 0.5)
        if self.num_reply_tokens is not None:
            within("align.num_reply_tokens", self.num_reply_tokens, 1)
        if not 0 <= self.beta < math.inf or (self.beta == 0 and not self.online):
            allowed = "at least 0" if self.online else "above 0"
            raise ConfigError(f"align.beta is {self.beta:g}; it must be {allowed}.")
        self._check_rewards()
        bounded = self.ppo.max_kl is not None or self.ppo.min_entropy is not None
        if self.method == "ppo" and self.beta == 0 and bounded and self.ppo.out_of_bounds == "rollback":
            raise ConfigError(
                "align.beta is 0, so align.ppo.out_of_bounds=rollback has no pull to strengthen; set it to 'stop', or "
                "align.beta above 0."
            )
        if self.method == "ppo" and self.global_batch_size % self.ppo.num_minibatches:
            raise ConfigError(
                f"align.global_batch_size is {self.global_batch_size}, which align.ppo.num_minibatches="
                f"{self.ppo.num_minibatches} does not divide; use a multiple of it."
            )
        if self.method in {"rloo", "grpo"} and self.global_batch_size % self.rollout.num_replies:
            raise ConfigError(
                f"align.global_batch_size is {self.global_batch_size}, which align.rollout.num_replies="
                f"{self.rollout.num_replies} does not divide; use a multiple of it."
            )

    def _check_rewards(self) -> None:
        known = (REWARD_MODEL, CONSTITUTION, *self.functions)
        for name, weight in self.rewards.items():
            if name not in known:
                raise ConfigError(
                    f"align.rewards names {name!r}, which is not one of {', '.join(known)}; "
                    f"to name a function of yours add +align.functions.{name}=file.py:function."
                )
            if not math.isfinite(weight):
                raise ConfigError(f"align.rewards.{name} is {weight:g}; give a finite weight.")
        for name, place in self.functions.items():
            if ":" not in place:
                raise ConfigError(f"align.functions.{name} is {place!r}; write it as file.py:function.")
        if self.online and not self.weights:
            raise ConfigError(f"align.rewards is empty but align.method is {self.method!r}; name what is to be raised.")
        if self.reward_model is not None and REWARD_MODEL not in self.weights:
            raise ConfigError("align.reward_model is set but align.rewards.reward_model is not; give it a weight.")

    @property
    def online(self) -> bool:
        """Whether replies are sampled while training."""
        return self.method in ONLINE_METHODS

    @property
    def weights(self) -> dict[str, float]:
        """The rewards that count."""
        return {name: weight for name, weight in self.rewards.items() if weight}

    @property
    def wants_reward_stage(self) -> bool:
        return REWARD_MODEL in self.weights and self.reward_model is None

    @property
    def wants_pairs(self) -> bool:
        return not self.online
