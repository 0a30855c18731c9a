"""GRPO: scores relative to the other replies to the same prompt, with the KL in the loss (Shao et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.base import PolicyGradient
from pipeline.methods.policy_gradient.config import GroupConfig

if TYPE_CHECKING:
    import torch

    from pipeline.methods.policy_gradient.rollouts import RolloutTensors


@METHODS.add
class GRPO(PolicyGradient):
    """Group-relative policy optimisation with outcome supervision (Shao et al. 2024, arXiv 2402.03300, section 4.1).

    The loss is a mean over the tokens of a minibatch. The paper takes the mean over each reply's tokens first and then
    over replies (equation 3), by which a token of a long reply counts for less than one of a short reply.
    """

    name = "grpo"
    kl_in_loss = True

    class Config(GroupConfig):
        """Scores relative to the group's mean and spread, with the KL in the loss."""

        method: Literal["grpo"] = "grpo"
        """Group-relative policy optimisation."""

    def advantages(self, drawn: RolloutTensors, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(score − mean of the group) / standard deviation of the group, on every token of the reply.

        A reply that was cut off and is not trained on still counts in both.
        """
        from pipeline.methods.policy_gradient.mathematics import group_relative_advantages

        advantages = group_relative_advantages(drawn.scores.view(-1, config.num_replies)).flatten()
        return advantages[:, None] * drawn.mask, None

    def kl_estimator(self, config: Any) -> str:
        """Equation 4."""
        return "k3"
