"""Metrics of a batch of rollouts, under TRL's names."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from pipeline.methods.base import CONSTITUTION
from pipeline.methods.policy_gradient.mathematics import Estimator, explained_variance, length_mask
from pipeline.methods.policy_gradient.rollouts import Rollout, padded

_NONE = torch.empty(0)
MISMATCH = "sampling/sampling_logp_difference/mean"
UNREADABLE = "val/num_unreadable_rewards"


def mean_kl(rollouts: Sequence[Rollout]) -> float:
    """Mean KL to the reference, in nats per reply."""
    return fmean(rollout.kl_nats for rollout in rollouts)


def token_entropy(rollouts: Sequence[Rollout]) -> float:
    """Mean entropy, in nats per token."""
    return float(torch.cat([rollout.entropies for rollout in rollouts]).mean())


def num_unreadable(rollouts: Sequence[Rollout]) -> int:
    """How many replies have the constitution's reward 0 because no answer of its judge could be read."""
    return sum(rollout.unreadable for rollout in rollouts)


def mismatch(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How far the engine that sampled the replies is from the trainer, over all tokens, in nats per token; empty if it
    computes with the trainer's own model.

    ``sampling/kl`` is the k1 estimate of KL(engine ‖ trainer).
    """
    differences = torch.cat([r.engine_logprobs - r.logprobs for r in rollouts if len(r.engine_logprobs)] or [_NONE])
    if not len(differences):
        return {}
    return {
        MISMATCH: float(differences.abs().mean()),
        "sampling/sampling_logp_difference/max": float(differences.abs().max()),
        "sampling/kl": float(differences.mean()),
    }


def describe(rollouts: Sequence[Rollout], kl: Estimator, kl_coefficient: float) -> dict[str, float]:
    """Return the metrics of one step before its update, by name."""
    penalty = -kl_coefficient * fmean(float(kl(r.logprobs, r.reference_logprobs).sum()) for r in rollouts)
    return {
        "objective/kl": mean_kl(rollouts),
        "objective/entropy": fmean(float(-rollout.logprobs.sum()) for rollout in rollouts),
        "objective/token_entropy": token_entropy(rollouts),
        "objective/non_score_reward": penalty,
        "objective/rlhf_reward": fmean(rollout.shaped_score for rollout in rollouts) + penalty,
        "objective/scores": fmean(rollout.score for rollout in rollouts),
        **{f"rewards/{name}": fmean(rollout.parts[name] for rollout in rollouts) for name in rollouts[0].parts},
        "objective/kl_coefficient": kl_coefficient,
        "val/num_eos_tokens": float(sum(rollout.ended for rollout in rollouts)),
        **({UNREADABLE: float(num_unreadable(rollouts))} if CONSTITUTION in rollouts[0].parts else {}),
        **_of_values(rollouts),
        **mismatch(rollouts),
        "reply_tokens_mean": float(torch.tensor([len(r.reply_tokens) for r in rollouts]).float().mean()),
    }


def _of_values(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The explained variance of the value model; empty without one."""
    if not rollouts[0].returns.numel():
        return {}
    values, returns = (
        padded([getattr(r, name) for r in rollouts], torch.device("cpu")) for name in ("values", "returns")
    )
    mask = length_mask(torch.tensor([len(rollout.reply_tokens) for rollout in rollouts]))
    return {"val/explained_variance": float(explained_variance(values, returns, mask))}
