"""The formulas of PPO, RLOO and GRPO by hand, and against plain loops over rows and tokens."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.methods.policy_gradient.mathematics import (
    KL_ESTIMATORS,
    adapt_kl_coefficient,
    advantages_and_returns,
    explained_variance,
    group_relative_advantages,
    kl_k1,
    kl_k2,
    kl_k3,
    leave_one_out_advantages,
    length_mask,
    masked_mean,
    policy_loss,
    reply_logprobs_and_entropy,
    token_rewards,
    value_loss,
    whiten,
)

LENGTHS = torch.tensor([3, 1, 5])
MASK = length_mask(LENGTHS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_masks_follow_from_lengths():
    assert MASK.int().tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert length_mask(torch.tensor([1, 2]), 3).int().tolist() == [[1, 0, 0], [1, 1, 0]]


def test_mean_and_whitening_leave_the_padding_out():
    values = noise(3, 5)
    kept = values[MASK]
    assert masked_mean(values, MASK).item() == pytest.approx(kept.mean().item())
    whitened = whiten(values, MASK)
    assert whitened[MASK].mean().item() == pytest.approx(0, abs=1e-9)
    assert whitened[MASK].std(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    assert (whitened[~MASK] == 0).all()
    spoiled = torch.where(MASK, values, 1e6)  # whatever stands in the padding
    assert torch.allclose(whiten(spoiled, MASK), whitened)


def test_advantages_by_hand():
    """Two tokens, γ = 1, λ = ½: δ = (0 + 2 − 1, 3 − 2) = (1, 1), A = (1 + ½·1, 1) = (1.5, 1), R = A + V = (2.5, 3)."""
    rewards, values = torch.tensor([[0.0, 3.0, 9.0]]), torch.tensor([[1.0, 2.0, 9.0]])
    advantages, returns = advantages_and_returns(rewards, values, length_mask(torch.tensor([2]), 3), 1.0, 0.5)
    assert advantages.tolist() == [[1.5, 1.0, 0.0]]
    assert returns.tolist() == [[2.5, 3.0, 0.0]]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (0.99, 1.0)])
def test_advantages_equal_the_sum_they_stand_for(gamma: float, gae_lambda: float):
    """A_t = Σ_l (γλ)^l δ_{t+l}, written out."""
    rewards, values = noise(3, 5), noise(3, 5, seed=1)
    advantages, returns = advantages_and_returns(rewards, values, MASK, gamma, gae_lambda)
    for row, length in enumerate(LENGTHS.tolist()):
        v = [*values[row, :length].tolist(), 0.0]
        deltas = [rewards[row, t].item() + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(5):
            expected = sum((gamma * gae_lambda) ** (i - t) * deltas[i] for i in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected)
            assert returns[row, t].item() == pytest.approx(expected + v[t] if t < length else 0)


def test_a_perfect_critic_with_lambda_one_leaves_no_advantage():
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    values = torch.tensor([[6.0, 5.0, 3.0]])
    advantages, _ = advantages_and_returns(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    assert advantages.abs().max().item() == 0


def test_leave_one_out_by_hand():
    """Rewards 1, 2, 6: the others' means are 4, 3.5 and 1.5."""
    assert leave_one_out_advantages(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])).tolist() == [
        [-3.0, -1.5, 4.5],
        [0.0, 0.0, 0.0],
    ]


def test_leave_one_out_equals_the_sum_it_stands_for():
    rewards = noise(4, 5)
    advantages = leave_one_out_advantages(rewards)
    for row in range(4):
        for i in range(5):
            others = [rewards[row, j].item() for j in range(5) if j != i]
            assert advantages[row, i].item() == pytest.approx(rewards[row, i].item() - sum(others) / 4)


def test_group_relative_by_hand():
    """Scores 1, 3, 5, 7 have mean 4 and standard deviation √5. A group without spread gets 0, rounding or not."""
    scores = torch.tensor([[1.0, 3.0, 5.0, 7.0], [0.1, 0.1, 0.1, 0.1], [2.0, 2.0, 2.0, 2.000001]])
    advantages = group_relative_advantages(scores)
    assert advantages[0].tolist() == pytest.approx([-3 / 5**0.5, -1 / 5**0.5, 1 / 5**0.5, 3 / 5**0.5])
    assert advantages[1:].tolist() == [[0.0] * 4] * 2


def test_group_relative_advantages_know_neither_shift_nor_scale():
    scores = noise(3, 6)
    advantages = group_relative_advantages(scores)
    assert torch.allclose(advantages, group_relative_advantages(7 * scores - 3))
    assert advantages.mean(dim=1).abs().max() < 1e-9 and torch.allclose(
        (advantages**2).mean(dim=1), torch.ones(3).double()
    )


def test_kl_estimators_by_hand():
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_k1(policy, reference).item() == pytest.approx(math.log(2))
    assert kl_k2(policy, reference).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_k3(policy, reference).item() == pytest.approx(0.5 - 1 + math.log(2))


def test_k1_and_k3_are_unbiased_and_k3_never_negative():
    """Against the sum over the whole distribution."""
    policy, reference = torch.log_softmax(noise(50), 0), torch.log_softmax(noise(50, seed=1), 0)
    exact = (policy.exp() * (policy - reference)).sum().item()
    means = {
        name: (policy.exp() * estimate(policy, reference)).sum().item() for name, estimate in KL_ESTIMATORS.items()
    }
    assert means["k1"] == pytest.approx(exact) and means["k3"] == pytest.approx(exact)
    assert means["k2"] != pytest.approx(exact)
    assert (kl_k3(policy, reference) >= 0).all() and (kl_k1(policy, reference) < 0).any()


def test_the_score_falls_on_the_last_token_and_the_kl_on_every_one():
    kl = torch.full((3, 5), 2.0)
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, LENGTHS, 0.1)
    assert rewards.tolist() == [
        pytest.approx([-0.2, -0.2, 0.8, 0, 0]),
        pytest.approx([1.8, 0, 0, 0, 0]),
        pytest.approx([-0.2, -0.2, -0.2, -0.2, 2.8]),
    ]


def test_policy_loss_by_hand():
    """ε = 0.2. A gain is not paid beyond ratio 1.2, a loss not below 0.8; the other sides are."""
    ratios = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0])
    losses, clipped = policy_loss(ratios.log(), torch.zeros(5), advantages, 0.2)
    assert losses.tolist() == pytest.approx([-2.0, -2.4, -1.0, 3.0, 1.6])
    assert clipped.tolist() == [False, True, False, False, True]


def test_the_policy_gradient_at_ratio_one_is_that_of_reinforce():
    logprobs = noise(3, 5).requires_grad_()
    advantages = noise(3, 5, seed=1)
    losses, _ = policy_loss(logprobs, logprobs.detach(), advantages, 0.2)
    losses.sum().backward()
    assert logprobs.grad is not None and torch.allclose(logprobs.grad, -advantages)


def test_the_gradient_of_k3_pulls_to_the_reference():
    """Its derivative by log π is 1 − ρ/π: positive where π is above ρ, so that a step lowers π there."""
    policy = noise(10).requires_grad_()
    reference = noise(10, seed=1)
    kl_k3(policy, reference).sum().backward()
    assert policy.grad is not None and torch.allclose(policy.grad, 1 - (reference - policy.detach()).exp())


def test_value_loss_by_hand():
    """Old value 1, ε = 0.5: 3 is held at 1.5, so against a return of 1.2 the unclipped error is the larger one."""
    values, old = torch.tensor([3.0, 1.2, 3.0]), torch.tensor([1.0, 1.0, 1.0])
    returns = torch.tensor([1.2, 2.0, 4.0])
    losses, clipped = value_loss(values, old, returns, 0.5)
    assert losses.tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 0.8**2, 0.5 * 2.5**2])
    assert clipped.tolist() == [False, False, True]


def test_the_kl_controller_steers_to_its_target():
    assert adapt_kl_coefficient(0.1, 4.0, 4.0, 64, 640) == pytest.approx(0.1)
    assert adapt_kl_coefficient(0.1, 100.0, 4.0, 64, 640) == pytest.approx(
        0.1 * math.exp(0.02)
    )  # the error is cut at 20 %
    assert adapt_kl_coefficient(0.1, 3.6, 4.0, 64, 640) == pytest.approx(0.1 * math.exp(-0.01))
    assert 0 < adapt_kl_coefficient(0.1, 0.0, 4.0, 5000, 10) < 0.1


def test_explained_variance():
    returns, everywhere = noise(3, 5), torch.ones(3, 5, dtype=torch.bool)
    assert explained_variance(returns, returns, everywhere).item() == pytest.approx(1)
    assert explained_variance(torch.zeros(3, 5), returns, everywhere).item() == pytest.approx(0)


def test_logprobs_and_entropy_at_a_temperature():
    logits, tokens = noise(2, 3, 7), torch.tensor([[0, 1, 2], [6, 5, 4]])
    logprobs, entropy = reply_logprobs_and_entropy(logits, tokens, 0.5)
    for row in range(2):
        for t in range(3):
            p = [math.exp(x / 0.5) for x in logits[row, t].tolist()]
            p = [x / sum(p) for x in p]
            assert logprobs[row, t].item() == pytest.approx(math.log(p[tokens[row, t]]), abs=1e-5)
            assert entropy[row, t].item() == pytest.approx(-sum(x * math.log(x) for x in p), abs=1e-5)
