"""Contrastive preference optimisation (Xu et al. 2024, arXiv 2401.08417) on soft labels: DPO without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.methods.base import METHODS
from pipeline.methods.pairs import BothRepliesConfig, PairMethod

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.pairs import PairLogprobs


def soft_cpo_loss(margins: Tensor, labels: Tensor, beta: float, target_margin: float) -> Tensor:
    """−p·log σ(β·m − γ) − (1−p)·log σ(−β·m − γ): the expectation of the paper's L_prefer over a soft label.

    γ is the target margin of SimPO (Meng et al. 2024, arXiv 2405.14734); 0 gives CPO.

    Args:
        margins: (pairs,), log p of reply A minus that of reply B under the policy.
        labels: (pairs,), probability that A is the better reply.
        target_margin: γ.

    Returns:
        (pairs,) losses.
    """
    from torch.nn.functional import logsigmoid

    logits = beta * margins
    return -labels * logsigmoid(logits - target_margin) - (1 - labels) * logsigmoid(-logits - target_margin)


@METHODS.add
class CPO(PairMethod):
    """Makes the better reply likelier than the other one. DPO makes it likelier than the SFT model does, so what DPO's
    policy says first also depends on where the SFT model began."""

    name = "cpo"

    class Config(BothRepliesConfig):
        """Contrastive preference optimisation on soft labels."""

        method: Literal["cpo"] = "cpo"
        """Contrastive preference optimisation."""
        target_margin: float = Field(default=0.0, ge=0)
        """By how much β times the margin should exceed 0 (γ of SimPO)."""
        nll_weight: float = Field(default=1.0, ge=0)
        """Weight of the negative log-likelihood of the better reply, per token."""

    def loss(self, pairs: PairLogprobs, labels: Tensor, config: Any) -> Tensor:
        margins = pairs.policy_a - pairs.policy_b
        likelihood = labels * pairs.policy_a / pairs.num_tokens_a + (1 - labels) * pairs.policy_b / pairs.num_tokens_b
        return soft_cpo_loss(margins, labels, config.beta, config.target_margin) - config.nll_weight * likelihood
