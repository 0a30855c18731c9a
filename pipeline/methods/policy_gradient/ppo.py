"""PPO: the advantages come from a value model (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.base import PolicyGradient, PolicyGradientConfig


@METHODS.add
class PPO(PolicyGradient):
    """Proximal policy optimisation as RLHF uses it (Ouyang et al. 2022, arXiv 2203.02155)."""

    name = "ppo"

    class Config(PolicyGradientConfig):
        """Proximal policy optimisation."""

        method: Literal["ppo"] = "ppo"
        """Proximal policy optimisation."""
        value_clip_range: float = Field(default=0.2, ge=1e-6)
        """A value may move by at most this from what it was when the reply was drawn."""
        value_learning_rate: float = Field(default=1.0e-4, ge=0, le=1)
        """AdamW's learning rate of the value model."""
        gamma: float = Field(default=1.0, ge=0, le=1)
        """Discount of later rewards, per token."""
        gae_lambda: float = Field(default=0.95, ge=0, le=1)
        """λ of generalised advantage estimation: 1 trusts the rewards, 0 the value model."""
        whiten_advantages: bool = True
        """Shift and scale the advantages of a batch to mean 0 and variance 1."""
        value_from_reward: bool = True
        """Start the value model from the reward model, where both share the base."""
