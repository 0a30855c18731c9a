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

    The loss is the mean over all tokens of a minibatch. In the paper it is the mean over replies of each reply's mean
    (equation 3), so a token of a long reply has less weight there.
    """

    name = "grpo"
    kl_in_loss = True

    class Config(GroupConfig):
        """Scores relative to the group's mean and standard deviation, with the KL in the loss."""

        method: Literal["grpo"] = "grpo"
        """Group-relative policy optimisation."""

    def advantages(self, drawn: RolloutTensors, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(score − mean of the group) / standard deviation of the group, the same for every token of a reply.

        Mean and standard deviation include replies that were cut off, even if these are left out of the loss.
        """
        from pipeline.methods.policy_gradient.mathematics import group_relative_advantages

        advantages = group_relative_advantages(drawn.scores.view(-1, config.num_replies)).flatten()
        return advantages[:, None] * drawn.mask, None

    def kl_estimator(self, config: Any) -> str:
        """k3, as in equation 4."""
        return "k3"
