"""RLOO: the baseline is the other replies to the same prompt, not a value model (Ahmadian et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.base import PolicyGradient
from pipeline.methods.policy_gradient.config import GroupConfig

if TYPE_CHECKING:
    import torch

    from pipeline.methods.policy_gradient.rollouts import RolloutTensors


@METHODS.add
class RLOO(PolicyGradient):
    """REINFORCE, leave one out (Ahmadian et al. 2024, arXiv 2402.14740).

    The loss is the mean over the tokens of a minibatch. The paper's loss is a sum over tokens and a mean over replies;
    the two differ by a factor, the mean reply length of the minibatch. After the first update of a rollout batch, PPO's
    clipped ratio corrects for the change of the policy, token by token.
    """

    name = "rloo"

    class Config(GroupConfig):
        """REINFORCE with the mean of the other replies as the baseline."""

        method: Literal["rloo"] = "rloo"
        """REINFORCE, leave one out."""

    def advantages(self, drawn: RolloutTensors, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The reward of a reply (score − β·KL) minus the mean reward of the other replies to the same prompt.

        The mean includes replies that were cut off, even if these are left out of the loss.
        """
        from pipeline.methods.policy_gradient.mathematics import leave_one_out_advantages

        rewards = drawn.scores - drawn.kl_coefficient * (drawn.kl * drawn.mask).sum(dim=1)
        advantages = leave_one_out_advantages(rewards.view(-1, config.num_replies)).flatten()
        return advantages[:, None] * drawn.mask, None
