"""The mathematics of policy gradients for language models, as pure functions.

Shapes are (rows, tokens) unless stated. A row is one reply; ``mask`` is True for its tokens and False for the padding
after them. An action is a token; a state is the text before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

Estimator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def length_mask(lengths: torch.Tensor, width: int | None = None) -> torch.Tensor:
    """True for the first ``lengths`` positions of each row: (rows,) → (rows, width)."""
    width = int(lengths.max()) if width is None else width
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens where the mask is True; zero if there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shift and scale to mean 0 and variance 1 where the mask is True; zero elsewhere."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


# --- KL (Schulman 2020, "Approximating KL divergence") ---------------------------------------------------------------


def kl_k1(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """log π − log ρ of tokens sampled from π: unbiased; it can be negative."""
    return policy - reference


def kl_k2(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """½(log π − log ρ)²: never negative, biased."""
    return 0.5 * (policy - reference) ** 2


def kl_k3(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """ρ/π − 1 − log ρ/π: unbiased and never negative."""
    return torch.expm1(reference - policy) - (reference - policy)


KL_ESTIMATORS: Mapping[str, Estimator] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def adapt_kl_coefficient(coefficient: float, kl: float, target: float, num_episodes: int, horizon: int) -> float:
    """The proportional controller of Ziegler et al. 2019 (arXiv 1909.08593, section 2.2).

    Args:
        kl, target: measured and target KL, in nats per reply.
        num_episodes: replies since the last change.
        horizon: in so many replies an error of 20 % multiplies the coefficient by e^0.2. (The paper's factor is
            1 + error·n/horizon, which is negative if n is much larger than the horizon.)

    Returns:
        the new coefficient.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * math.exp(error * num_episodes / horizon)


# --- Rewards and advantages ----------------------------------------------------------------------------------------


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, lengths: torch.Tensor, kl_coefficient: float) -> torch.Tensor:
    """−β·KL per token, plus the reply's score at its last token (Ouyang et al. 2022, arXiv 2203.02155, equation 2).

    Args:
        scores: (rows,).
        kl: (rows, tokens).
        lengths: (rows,), in tokens, at least 1.

    Returns:
        (rows, tokens).
    """
    rewards = -kl_coefficient * kl * length_mask(lengths, kl.shape[1])
    return rewards.scatter_add(1, lengths[:, None] - 1, scores[:, None].to(rewards.dtype))


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    δ_t = r_t + γ·V(s_{t+1}) − V(s_t) and A_t = δ_t + γλ·A_{t+1}; after the last token V and A are zero.

    Returns:
        advantages, and returns A + V (the targets of the value model); zero outside the mask.
    """
    mask = mask.to(values.dtype)
    values, rewards = values * mask, rewards * mask
    advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(advantage)
    reversed_advantages = []
    for token in reversed(range(values.shape[1])):
        delta = rewards[:, token] + gamma * next_value - values[:, token]
        # Padding comes after the reply, so both sums are still zero at the reply's last token.
        advantage = (delta + gamma * gae_lambda * advantage) * mask[:, token]
        next_value = values[:, token]
        reversed_advantages.append(advantage)
    advantages = torch.stack(reversed_advantages[::-1], dim=1)
    return advantages, (advantages + values) * mask


def leave_one_out_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """R_i − (1/(k−1))·Σ_{j≠i} R_j, with R = score − β·log π/ρ (Ahmadian et al. 2024, arXiv 2402.14740, RLOO).

    Args:
        rewards: (prompts, k), of k replies to each prompt.

    Returns:
        (prompts, k).
    """
    num_others = rewards.shape[1] - 1
    return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / num_others


def group_relative_advantages(scores: torch.Tensor) -> torch.Tensor:
    """(r_i − mean(r)) / std(r) over the replies to one prompt (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    A group with a standard deviation below 1e-4, which may be a rounding error, gets 0.

    Args:
        scores: (prompts, k), of k replies to each prompt.

    Returns:
        (prompts, k).
    """
    spread, mean = torch.std_mean(scores, dim=1, correction=0, keepdim=True)
    return torch.where(spread > 1e-4, (scores - mean) / spread, 0.0)


# --- Losses --------------------------------------------------------------------------------------------------------


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """−min(r·A, clip(r, 1 ± ε)·A) with r = π/π_old (Schulman et al. 2017, arXiv 1707.06347, equation 7).

    Returns:
        (rows, tokens) losses, and a mask of the tokens where the loss is the clipped term.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    return torch.maximum(plain, clipped), clipped > plain


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """½·max((V − R)², (V_clipped − R)²), with V_clipped within ±ε of the old value (as in OpenAI's PPO code).

    Returns:
        (rows, tokens) losses, and a mask of the tokens where the loss is the clipped term.
    """
    clipped_values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """1 − Var(R − V) / Var(R): 1 if the values are the returns, 0 if they are constant."""

    def variance(numbers: torch.Tensor) -> torch.Tensor:
        return masked_mean((numbers - masked_mean(numbers, mask)) ** 2, mask)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)


def reply_logprobs_and_entropy(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log π of given tokens at a temperature, and the entropy of π at each token, in nats.

    Args:
        logits: (rows, tokens, vocabulary), the logits that predict the tokens.
        tokens: (rows, tokens).

    Returns:
        (rows, tokens) each; the entropy has no gradient.
    """
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropy = -torch.einsum("rtv,rtv->rt", logprobs.exp(), logprobs)
    return logprobs.gather(-1, tokens[..., None])[..., 0], entropy
