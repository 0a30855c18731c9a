"""Settings of the policy-gradient methods. A method has only the fields that it reads."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from pipeline.core.settings import RUNTIME
from pipeline.data.drawing import PoolSizes
from pipeline.evals.judges.base import JUDGES, JudgeConfig
from pipeline.evals.judges.patterns import PatternsJudge
from pipeline.methods.base import GROUP_VARIANCE, AlignConfig


class RolloutConfig(PoolSizes):
    """The replies that the policy samples in training, and their prompts."""

    num_red_team: int = Field(default=64, ge=0)
    """Harmful requests."""
    num_ordinary: int = Field(default=64, ge=0)
    """Ordinary requests."""
    num_look_alike: int = Field(default=32, ge=0)
    """Harmless requests that look harmful."""
    num_counterfactuals: int = Field(default=0, ge=0)
    """Counterfactual templates (docs/fairness.md); all groups of a template are in one global batch."""
    temperature: float = Field(default=1.0, ge=0.05, le=5)
    """Sampling temperature of the replies; log-probabilities are computed at it, too."""
    max_reply_tokens: int = Field(default=48, ge=1)
    """A reply is cut off at so many tokens."""
    missing_eos_penalty: float | None = Field(default=1.0, ge=0)
    """Subtracted from the score of a reply that was cut off; null: no penalty."""
    drop_truncated: bool = False
    """Leave replies that were cut off out of the loss."""
    num_held_out: int = Field(default=32, ge=2)
    """Prompts of the validation split; the policy is scored on them before, during and after training."""
    held_out_every_steps: int = Field(default=8, ge=1)
    """Steps between two scorings of the policy on held-out prompts, by rewards and second judge; the best policy is
    kept."""
    show_every_steps: Annotated[int, RUNTIME] = Field(default=4, ge=1)
    """Steps between two tables of sample replies on the dashboard."""

    def key(self) -> dict[str, Any]:
        """Without counterfactuals, their number is not in it: results from before this setting stay valid."""
        usual = {"num_counterfactuals": 0}
        return {name: value for name, value in super().key().items() if (name, value) not in usual.items()}

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        if self.num_prompts == 0:
            raise ValueError(
                "{here}.num_red_team, {here}.num_ordinary and {here}.num_look_alike are all 0; set one above 0"
            )
        return self


class PolicyGradientConfig(AlignConfig):
    """Settings that all policy-gradient methods share."""

    sees_groups = True

    max_length_tokens: Annotated[int, RUNTIME] = Field(ge=64)
    """Prompts that leave no room for a reply within so many tokens are refused; nothing is cut."""
    save_every_steps: int = Field(default=10, ge=1)
    """Steps between two checkpoints; a rollback returns to a checkpoint."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampled replies and their prompts."""
    trust: Annotated[bool, RUNTIME] = False
    """Train against the run's reward model even if, on held-out labels, it is no better than the length of a reply or a
    refusal at its start alone."""
    num_minibatches: int = Field(default=4, ge=1)
    """Minibatches per global batch; each one is one optimiser step."""
    num_ppo_epochs: int = Field(default=2, ge=1)
    """PPO epochs: passes over each global batch of rollouts."""
    clip_range: float = Field(default=0.2, ge=1e-6)
    """The probability ratio π/π_old is clipped to 1 ± this."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive`` changes β so that the KL approaches ``target_kl``."""
    target_kl: float = Field(default=4.0, ge=1e-6)
    """Target KL of the adaptive controller, in nats per reply."""
    kl_horizon_episodes: int = Field(default=512, ge=1)
    """Horizon of the adaptive controller, in replies: a larger value changes β more slowly."""
    normalise_scores: bool = False
    """Divide scores by their running standard deviation."""
    clip_score: float | None = Field(default=5.0, ge=0)
    """Scores are clipped to ± this; null: no clipping."""
    max_kl: float | None = Field(default=20.0, ge=0)
    """Largest KL in nats per reply; null: no bound."""
    min_entropy: float | None = Field(default=None, ge=0)
    """Smallest entropy in nats per token (a lower one means that the policy collapsed); null: no bound."""
    out_of_bounds: Literal["stop", "rollback"] = "rollback"
    """Outside ``max_kl`` or ``min_entropy``: return to the last checkpoint within bounds, then stop or double β."""
    max_rollbacks: int = Field(default=2, ge=0)
    """Training stops at the next violation after so many rollbacks."""
    group_score: Literal["declines", "reward"] = "declines"
    """What ``rewards.group_variance`` compares between groups: whether a reply declines, by its wording (0 or 1), or
    the sum of the other rewards."""
    second_judge: Annotated[SerializeAsAny[JudgeConfig], BeforeValidator(JUDGES.parse)] = PatternsJudge.Config()
    """The second judge of the replies to held-out prompts. Nothing is trained on its verdicts."""
    stop_on_second_judge: bool = True
    """Stop where the second judge falls while the reward rises, and keep the best policy by it; false: only warn."""

    def key(self) -> dict[str, Any]:
        """``group_score`` is in it only where it is read: results from before this setting stay valid."""
        unread = set[str]() if GROUP_VARIANCE in self.rewards else {"group_score"}
        return {name: value for name, value in super().key().items() if name not in unread}

    @model_validator(mode="after")
    def _check_group_variance(self) -> Self:
        if GROUP_VARIANCE not in self.rewards:
            return self
        if not self.rollout.num_counterfactuals:
            raise ValueError(
                "{here}.rewards.group_variance is set but {here}.rollout.num_counterfactuals is 0, so no request is "
                "about several groups; set {here}.rollout.num_counterfactuals=16"
            )
        if len(self.rewards) == 1:
            raise ValueError(
                "{here}.rewards.group_variance is the only reward, and the same nonsense for every group has the "
                "highest; add another one, for example {here}.rewards.reward_model=1"
            )
        return self

    @model_validator(mode="after")
    def _check_loop(self) -> Self:
        if not self.rewards:
            raise ValueError(
                f"{{here}}.rewards is empty but {{here}}.method is {self.method!r}; add a reward, for example "
                "{here}.rewards.reward_model=1"
            )
        bounded = self.max_kl is not None or self.min_entropy is not None
        if self.beta == 0 and bounded and self.out_of_bounds == "rollback":
            raise ValueError(
                "{here}.beta is 0, so {here}.out_of_bounds=rollback has no penalty to double; set it to 'stop', or set "
                "{here}.beta above 0"
            )
        if self.global_batch_size % self.num_minibatches:
            raise ValueError(
                f"{{here}}.global_batch_size is {self.global_batch_size}, which {{here}}.num_minibatches="
                f"{self.num_minibatches} does not divide; use a multiple of it"
            )
        return self

    @property
    def replies_per_prompt(self) -> int:
        return 1

    def num_steps(self, num_prompts: int) -> int:
        """The number of global batches of rollouts."""
        num_rollouts = self.num_epochs * num_prompts * self.replies_per_prompt
        return max(1, math.ceil(num_rollouts / self.global_batch_size))


class ValueConfig(PolicyGradientConfig):
    """Settings of the methods that train a value model."""

    value_learning_rate: float = Field(default=1.0e-4, ge=0, le=1)
    """AdamW's learning rate of the value model."""
    value_clip_range: float = Field(default=0.2, ge=1e-6)
    """In the value loss, a value is clipped to ± this around its value at the time of sampling."""
    value_from_reward: bool = True
    """Start the value model from the reward model if both share the base model."""


class GroupConfig(PolicyGradientConfig):
    """Settings of the methods that compare several replies to one prompt."""

    num_replies: int = Field(default=4, ge=2)
    """Replies per prompt; they are each other's baseline."""

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.global_batch_size % self.num_replies:
            raise ValueError(
                f"{{here}}.global_batch_size is {self.global_batch_size}, which {{here}}.num_replies="
                f"{self.num_replies} does not divide; use a multiple of it"
            )
        return self

    @property
    def replies_per_prompt(self) -> int:
        return self.num_replies
