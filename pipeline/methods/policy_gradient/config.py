"""What the policy-gradient methods set: a field is in the settings of those methods that read it, and in no others."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.core.settings import RUNTIME
from pipeline.data.drawing import PoolSizes
from pipeline.methods.base import AlignConfig


class RolloutConfig(PoolSizes):
    """Replies that are drawn from the policy while it trains, and the prompts they answer."""

    num_red_team: int = Field(default=64, ge=0)
    """Harmful requests."""
    num_ordinary: int = Field(default=64, ge=0)
    """Ordinary requests."""
    num_look_alike: int = Field(default=32, ge=0)
    """Harmless requests that look harmful."""
    temperature: float = Field(default=1.0, ge=0.05, le=5)
    """Replies are drawn at this temperature, and log-probabilities are taken at it."""
    max_reply_tokens: int = Field(default=48, ge=1)
    """A reply is cut off at so many tokens."""
    missing_eos_penalty: float | None = Field(default=1.0, ge=0)
    """Taken from the score of a reply that was cut off; null takes nothing."""
    drop_truncated: bool = False
    """Leave replies that were cut off out of the loss."""
    num_held_out: int = Field(default=32, ge=2)
    """Prompts of the validation split on which the policy is measured before, during and after training."""
    held_out_every_steps: int = Field(default=8, ge=1)
    """Steps between measurements on them; the best policy measured is kept."""
    show_every_steps: Annotated[int, RUNTIME] = Field(default=4, ge=1)
    """Steps between tables of sample replies on the dashboard."""

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        if self.num_prompts == 0:
            raise ValueError(
                "{here}.num_red_team, {here}.num_ordinary and {here}.num_look_alike are all 0; ask at least one prompt"
            )
        return self


class PolicyGradientConfig(AlignConfig):
    """What the loop sets, whatever the advantages are."""

    save_every_steps: int = Field(default=10, ge=1)
    """Steps between checkpoints, which are also what a rollback returns to."""
    rollout: RolloutConfig = RolloutConfig()
    """Replies and the prompts they answer."""
    num_minibatches: int = Field(default=4, ge=1)
    """Optimiser steps in which the global batch is gone through once."""
    num_ppo_epochs: int = Field(default=2, ge=1)
    """How often each rollout is trained on."""
    clip_range: float = Field(default=0.2, ge=1e-6)
    """The probability ratio π/π_old is clipped to 1 ± this."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive`` steers β so that the KL comes near target_kl."""
    target_kl: float = Field(default=4.0, ge=1e-6)
    """Nats of KL per reply that the adaptive controller aims at."""
    kl_horizon_episodes: int = Field(default=512, ge=1)
    """Replies over which the adaptive controller reacts."""
    normalise_scores: bool = False
    """Divide scores by their running standard deviation."""
    clip_score: float | None = Field(default=5.0, ge=0)
    """Scores are clipped to ± this; null: not at all."""
    max_kl: float | None = Field(default=20.0, ge=0)
    """Nats of KL per reply; above, the step is not kept. Null: no bound."""
    min_entropy: float | None = Field(default=None, ge=0)
    """Nats of entropy per token; below, the policy has collapsed and the step is not kept. Null: no bound."""
    out_of_bounds: Literal["stop", "rollback"] = "rollback"
    """What happens at a bound: stop, or return to the last checkpoint within bounds and double β."""
    max_rollbacks: int = Field(default=2, ge=0)
    """After so many rollbacks training stops."""

    @model_validator(mode="after")
    def _check_loop(self) -> Self:
        if not self.rewards:
            raise ValueError(
                f"{{here}}.rewards is empty but {{here}}.method is {self.method!r}; name a reward, for instance "
                "{here}.rewards.reward_model=1"
            )
        bounded = self.max_kl is not None or self.min_entropy is not None
        if self.beta == 0 and bounded and self.out_of_bounds == "rollback":
            raise ValueError(
                "{here}.beta is 0, so {here}.out_of_bounds=rollback has no penalty to double; set it to 'stop', or "
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
        """Global batches of rollouts."""
        num_rollouts = self.num_epochs * num_prompts * self.replies_per_prompt
        return max(1, math.ceil(num_rollouts / self.global_batch_size))


class ValueConfig(PolicyGradientConfig):
    """What methods set that train a value model."""

    value_learning_rate: float = Field(default=1.0e-4, ge=0, le=1)
    """AdamW's learning rate of the value model."""
    value_clip_range: float = Field(default=0.2, ge=1e-6)
    """A value may move by at most this from what it was when the reply was drawn."""
    value_from_reward: bool = True
    """Start the value model from the reward model, where both share the base."""


class GroupConfig(PolicyGradientConfig):
    """What methods set that compare several replies to one prompt."""

    num_replies: int = Field(default=4, ge=2)
    """Replies to each prompt; the others are the baseline of each."""

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
