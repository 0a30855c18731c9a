"""Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036) on soft labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline.methods.base import METHODS
from pipeline.methods.pairs import BothRepliesConfig, PairMethod

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.pairs import PairLogprobs


def soft_ipo_loss(margins: Tensor, labels: Tensor, beta: float) -> Tensor:
    """p·(m − 1/2β)² + (1−p)·(m + 1/2β)²: the expectation of the paper's equation 17 over a soft label.

    Margins are per token, so that β has the same effect for any reply length.

    Args:
        margins: (pairs,), log-ratio per token of policy to reference of reply A minus that of reply B.
        labels: (pairs,), probability that A is the better reply.

    Returns:
        (pairs,) losses.
    """
    target = 1 / (2 * beta)
    return labels * (margins - target) ** 2 + (1 - labels) * (margins + target) ** 2


@METHODS.add
class IPO(PairMethod):
    """Moves the margin to ±1/2β. In DPO, a label of 0 or 1 has no finite optimum of the margin."""

    name = "ipo"

    class Config(BothRepliesConfig):
        """Identity preference optimisation on soft labels."""

        method: Literal["ipo"] = "ipo"
        """Identity preference optimisation."""

    def loss(self, pairs: PairLogprobs, labels: Tensor, config: Any) -> Tensor:
        margins = pairs.ratio_a / pairs.num_tokens_a - pairs.ratio_b / pairs.num_tokens_b
        return soft_ipo_loss(margins, labels, config.beta)
