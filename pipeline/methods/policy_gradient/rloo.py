"""RLOO: the other replies to the same prompt take the place of a value model (Ahmadian et al. 2024)."""

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

    The loss is a mean over the tokens of a minibatch. The paper sums over the tokens of a reply and takes the mean over
    replies: the same but for a factor, the mean length of the minibatch's replies. Where a rollout is trained on after
    the policy has moved, PPO's clipped ratio corrects for it, token by token.
    """

    name = "rloo"

    class Config(GroupConfig):
        """REINFORCE with the mean of the other replies as the baseline."""

        method: Literal["rloo"] = "rloo"
        """REINFORCE, leave one out."""

    def advantages(self, drawn: RolloutTensors, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The reply's reward, which is its score − β·KL, less the mean of the others' to the same prompt.

        A reply that was cut off and is not trained on still counts in the mean.
        """
        from pipeline.methods.policy_gradient.mathematics import leave_one_out_advantages

        rewards = drawn.scores - drawn.kl_coefficient * (drawn.kl * drawn.mask).sum(dim=1)
        advantages = leave_one_out_advantages(rewards.view(-1, config.num_replies)).flatten()
        return advantages[:, None] * drawn.mask, None
