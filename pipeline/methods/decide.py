"""Learn the decision to decline or to answer: the odds of first tokens, the words of refusals, a KL penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.core.errors import ConfigError
from pipeline.core.stage import Prepared
from pipeline.methods.base import METHODS
from pipeline.methods.pairs import BothRepliesConfig, PairMethod

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.training.pairs import PairLogprobs


def kl_estimate(log_ratios: Tensor, num_tokens: Tensor) -> Tensor:
    """r − 1 − log r per token, with r = π(y)/π_ref(y) of a reply y that the reference prefers.

    It is the k3 estimate of KL(π_ref‖π) for replies sampled from π_ref (Schulman, "Approximating KL divergence", 2020):
    zero where π agrees with π_ref on the reply, and never negative. Its gradient is at most 1 nat per nat, however
    far π has moved down.

    Args:
        log_ratios: (pairs,), log π/π_ref of whole replies.
        num_tokens: (pairs,), their numbers of tokens.

    Returns:
        (pairs,) estimates in nats per token.
    """
    return (log_ratios.exp() - 1 - log_ratios) / num_tokens


def log_odds(logprobs: Tensor) -> Tensor:
    """log p − log(1 − p), of log p; p of 1 gives a large number and not infinity."""
    logprobs = logprobs.clamp(max=-1e-6)
    return logprobs - (-logprobs.expm1()).log()


def decision_loss(
    declining: Tensor, answering: Tensor, labels: Tensor, beta: float, target_margin: float, weight: float
) -> Tensor:
    """−w·p·log σ(β·o − γ) − (1−p)·log σ(−β·m − γ), the losses of CPO with two margins, o and m.

    Where declining is right, the opening of a refusal has to win against every other beginning: o is its log-odds.
    Against the one answer that is known, it would win, and the policy would begin in a third way ("I can help you …").
    Where answering is right, that answer has to win: m is the difference of the two.

    Args:
        declining, answering: (pairs,), log p of the two openings under the policy.
        labels: (pairs,), p, the probability that declining is right.
        target_margin: γ of SimPO (Meng et al. 2024, arXiv 2405.14734).
        weight: w.

    Returns:
        (pairs,) losses.
    """
    from torch.nn.functional import logsigmoid

    against_all, against_answer = beta * log_odds(declining), beta * (declining - answering)
    declines = -logsigmoid(against_all - target_margin)
    answers = -logsigmoid(-against_answer - target_margin)
    return weight * labels * declines + (1 - labels) * answers


@METHODS.add
class Decide(PairMethod):
    """Teaches whether to decline. Where declining is right, the opening of a refusal becomes likelier than all else;
    where it is not, the first tokens of the answer become likelier than that opening, and stay as they are otherwise.
    Where a whole refusal is known, its words are learnt, too."""

    name = "decide"

    class Config(BothRepliesConfig):
        """The decision to decline or answer, from the first tokens."""

        method: Literal["decide"] = "decide"
        """Learns whether to decline."""
        target_margin: float = Field(default=0.5, ge=0)
        """By how much β times the log-odds of declining, or the margin of an answer over it, should exceed 0."""
        declining_weight: float = Field(default=1.4, gt=0)
        """Weight of the decision where declining is right; a larger value declines more."""
        refusal_weight: float = Field(default=1.0, ge=0)
        """Weight of the negative log-likelihood of what follows the opening in a right refusal, per token."""
        kl_weight: float = Field(default=0.5, ge=0)
        """Weight of the KL to the reference on a right answer, per token."""

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        notes = super().check(config, prepared)
        if prepared.config.preferences.pairs == "sampled":
            raise ConfigError(
                "align.method is 'decide', which learns whether to decline, but preferences.pairs is 'sampled', so no "
                "pair has a refusal and an answer; use align=dpo_whole, or preferences=openings."
            )
        if not prepared.constitution.opening():  # then "contrast" gives sampled pairs
            raise ConfigError(
                f"align.method is 'decide', but the constitution {prepared.constitution.name!r} does not show how a "
                "refusal begins; use align=dpo_whole."
            )
        return notes

    def learns_from_openings(self, config: Any) -> bool:
        return not config.rewards

    def loss(self, pairs: PairLogprobs, labels: Tensor, config: Any) -> Tensor:
        """The loss of each pair of a refusal (reply A) and an answer (reply B), (pairs,)."""
        decision = decision_loss(
            pairs.opening_a, pairs.opening_b, labels, config.beta, config.target_margin, config.declining_weight
        )
        wording = -labels * (pairs.policy_a - pairs.opening_a) / pairs.num_tokens_a  # 0 where A is only the opening
        drift = (1 - labels) * kl_estimate(pairs.ratio_b, pairs.num_tokens_b)
        return decision + config.refusal_weight * wording + config.kl_weight * drift
