"""RLOO and GRPO: the other replies to the same prompt take the place of a value model."""

from __future__ import annotations

from typing import Literal

from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.base import GroupConfig, PolicyGradient


@METHODS.add
class RLOO(PolicyGradient):
    """REINFORCE, leave one out (Ahmadian et al. 2024, arXiv 2402.14740)."""

    name = "rloo"

    class Config(GroupConfig):
        """REINFORCE with the mean of the other replies as the baseline."""

        method: Literal["rloo"] = "rloo"
        """REINFORCE, leave one out."""


@METHODS.add
class GRPO(PolicyGradient):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

    name = "grpo"

    class Config(GroupConfig):
        """Scores relative to the group's mean and spread, with the KL in the loss."""

        method: Literal["grpo"] = "grpo"
        """Group-relative policy optimisation."""
