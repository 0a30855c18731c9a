"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) on soft labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline.methods.base import METHODS
from pipeline.methods.pairs import BothRepliesConfig, PairMethod

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.pairs import PairLogprobs


def soft_dpo_loss(margins: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Cross-entropy of σ(β·margin) against the soft label.

    BCE(p, σ(x)) = −p·log σ(x) − (1−p)·log σ(−x), with x = β·margin. A label p = 1 gives equation 7 of the paper.

    Args:
        margins: (pairs,), log-ratio of policy to reference of reply A minus that of reply B.
        labels: (pairs,), probability that A is the better reply.

    Returns:
        (pairs,) losses.
    """
    from torch.nn.functional import logsigmoid

    logits = beta * margins
    return -labels * logsigmoid(logits) - (1 - labels) * logsigmoid(-logits)


@METHODS.add
class DPO(PairMethod):
    """Raises the log-ratio of the better reply above that of the other."""

    name = "dpo"

    class Config(BothRepliesConfig):
        """Direct preference optimisation on soft labels."""

        method: Literal["dpo"] = "dpo"
        """Direct preference optimisation."""

    def loss(self, pairs: PairLogprobs, labels: Tensor, config: Any) -> Tensor:
        return soft_dpo_loss(pairs.ratio_a - pairs.ratio_b, labels, config.beta)
