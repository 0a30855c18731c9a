"""PPO: a value model gives the advantages (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.base import PolicyGradient
from pipeline.methods.policy_gradient.config import ValueConfig

if TYPE_CHECKING:
    import torch

    from pipeline.methods.policy_gradient.rollouts import RolloutTensors


@METHODS.add
class PPO(PolicyGradient):
    """Proximal policy optimisation for RLHF (Ouyang et al. 2022, arXiv 2203.02155)."""

    name = "ppo"
    uses_value_model = True

    class Config(ValueConfig):
        """Proximal policy optimisation."""

        method: Literal["ppo"] = "ppo"
        """Proximal policy optimisation."""
        kl_estimator: Literal["k1", "k2", "k3"] = "k1"
        """Estimator of the KL per token (Schulman 2020)."""
        gamma: float = Field(default=1.0, ge=0, le=1)
        """Discount of later rewards, per token."""
        gae_lambda: float = Field(default=0.95, ge=0, le=1)
        """λ of generalised advantage estimation: at 1 advantages rely on the rewards, at 0 on the value model."""
        whiten_advantages: bool = True
        """Shift and scale the advantages of a batch to mean 0 and variance 1."""

    def advantages(self, drawn: RolloutTensors, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Generalised advantage estimation. The reward is −β·KL per token, plus the score at the last token."""
        from pipeline.methods.policy_gradient.mathematics import advantages_and_returns, token_rewards, whiten

        rewards = token_rewards(drawn.scores, drawn.kl, drawn.lengths, drawn.kl_coefficient)
        advantages, returns = advantages_and_returns(rewards, drawn.values, drawn.mask, config.gamma, config.gae_lambda)
        if config.whiten_advantages:
            advantages = whiten(advantages, drawn.mask & drawn.is_trained_on[:, None])
        return advantages, returns

    def kl_estimator(self, config: Any) -> str:
        return str(config.kl_estimator)
