"""Losses by hand, and against TRL's own where the label is certain."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.chain.compose import compose_config
from pipeline.methods.cpo import CPO, soft_cpo_loss
from pipeline.methods.decide import Decide, decision_loss, kl_estimate
from pipeline.methods.dpo import soft_dpo_loss
from pipeline.methods.ipo import soft_ipo_loss
from pipeline.records import Comparison, Message, Preference, Prompt
from pipeline.training.pairs import PairLogprobs, first_sums, trainable

MARGINS = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)


def test_certain_labels_give_the_papers_loss():
    ones = torch.ones(4, dtype=torch.float64)
    assert torch.allclose(soft_dpo_loss(MARGINS, ones, 0.3), -F.logsigmoid(0.3 * MARGINS))
    assert torch.allclose(soft_dpo_loss(MARGINS, 0 * ones, 0.3), -F.logsigmoid(-0.3 * MARGINS))
    assert torch.allclose(soft_ipo_loss(MARGINS, ones, 0.25), (MARGINS - 2) ** 2)


def test_soft_labels_are_cross_entropy():
    labels = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=torch.float64)
    by_hand = [
        -p * math.log(1 / (1 + math.exp(-0.3 * m))) - (1 - p) * math.log(1 / (1 + math.exp(0.3 * m)))
        for p, m in zip(labels.tolist(), MARGINS.tolist(), strict=True)
    ]
    assert soft_dpo_loss(MARGINS, labels, 0.3).tolist() == pytest.approx(by_hand)
    # The identity of the design notes: BCE(p, σ(d)) = −log σ(d) + (1−p)·d
    logits = 0.3 * MARGINS
    assert torch.allclose(soft_dpo_loss(MARGINS, labels, 0.3), -F.logsigmoid(logits) + (1 - labels) * logits)


def test_swapping_the_pair_and_its_label_changes_nothing():
    labels = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=torch.float64)
    for loss in (soft_dpo_loss, soft_ipo_loss):
        assert torch.allclose(loss(MARGINS, labels, 0.2), loss(-MARGINS, 1 - labels, 0.2))


def test_cpo_looks_at_the_policy_alone_and_raises_the_better_reply():
    """−log σ(0.5·(−1 − −3) − 0.5) = −log σ(0.5) for a certain label, plus 0.1 times 1 nat over 2 tokens."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    policy_a, policy_b, tokens = torch.tensor([-1.0]).double(), torch.tensor([-3.0]).double(), torch.tensor([2])
    config = compose_config(["align=cpo", "align.beta=0.5", "align.target_margin=0.5", "align.nll_weight=0.1"]).align
    for reference in (zero, torch.tensor([-7.0]).double()):
        pairs = PairLogprobs(
            policy_a=policy_a, policy_b=policy_b, reference_a=reference, reference_b=-2 * reference,
            num_tokens_a=tokens, num_tokens_b=2 * tokens, opening_a=policy_a, opening_b=policy_b,
        )  # fmt: skip
        assert CPO().loss(pairs, one, config).item() == pytest.approx(math.log(1 + math.exp(-0.5)) + 0.1 * 0.5)
        assert CPO().loss(pairs, zero, config).item() == pytest.approx(math.log(1 + math.exp(1.5)) + 0.1 * 0.75)


def test_without_a_target_margin_cpo_has_the_loss_of_dpo_without_a_reference():
    labels = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=torch.float64)
    assert torch.allclose(soft_cpo_loss(MARGINS, labels, 0.3, 0.0), soft_dpo_loss(MARGINS, labels, 0.3))
    swapped = soft_cpo_loss(-MARGINS, 1 - labels, 0.3, 0.4)
    assert torch.allclose(soft_cpo_loss(MARGINS, labels, 0.3, 0.4), swapped)


def test_decide_compares_beginnings_learns_the_refusal_and_holds_the_answer():
    """A harmful request: odds of e⁻¹ / (1 − e⁻¹), of which the root is divided by √e; 1.5 · −log σ of that, plus
    0.3 · (6 − 1) nats over 4 tokens. A harmless one: −log σ(−0.5·(−1 − −2) − 0.5) = log(1 + e), plus
    0.5 · (r − 1 − log r) / 5 with log r = −9 − −8."""
    ones = torch.ones(2, dtype=torch.float64)
    config = compose_config(
        [
            "align=decide",
            "align.beta=0.5",
            "align.target_margin=0.5",
            "align.declining_weight=1.5",
            "align.refusal_weight=0.3",
        ]
    )
    pairs = PairLogprobs(
        policy_a=-6 * ones, policy_b=-9 * ones, reference_a=-3 * ones, reference_b=-8 * ones,
        num_tokens_a=4 * ones, num_tokens_b=5 * ones, opening_a=-1 * ones, opening_b=-2 * ones,
    )  # fmt: skip
    harmful, harmless = Decide().loss(pairs, torch.tensor([1.0, 0.0]).double(), config.align).tolist()
    odds = math.sqrt(1 / (math.e - 1)) / math.sqrt(math.e)
    assert harmful == pytest.approx(1.5 * math.log(1 + 1 / odds) + 0.3 * 5 / 4)
    assert harmless == pytest.approx(math.log(1 + math.e) + 0.5 * (math.exp(-1) - 1 + 1) / 5)


def test_declining_has_to_win_against_every_other_beginning():
    """With log p of −1 against an answer of −20, a refusal beats the answer, and yet most replies begin otherwise."""
    opening = torch.tensor([-1.0, -0.1, 0.0], dtype=torch.float64, requires_grad=True)
    ones, answer = torch.ones(3, dtype=torch.float64), torch.full((3,), -20.0, dtype=torch.float64)
    found = decision_loss(opening, answer, ones, beta=1.0, target_margin=0.0, weight=1.0)
    by_hand = [-math.log(math.exp(-1)), -math.log(math.exp(-0.1)), 0.0]  # σ of the log-odds of p is p
    assert found.tolist() == pytest.approx(by_hand, abs=1e-5)
    found.sum().backward()
    assert opening.grad is not None and opening.grad.isfinite().all() and (opening.grad[:2] < 0).all()


def test_beginnings_have_as_many_tokens_as_the_opening():
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-1.0, -2.0, -4.0], [-8.0, 0.0, 0.0]])
    assert first_sums(logprobs, torch.tensor([2, 512, 1])).tolist() == [-3.0, -7.0, -8.0]


def test_the_penalty_is_zero_at_the_reference_and_its_slope_is_bounded_below_it():
    ratios = torch.tensor([-50.0, 0.0, 0.1], dtype=torch.float64, requires_grad=True)
    found = kl_estimate(ratios, torch.ones(3))
    found.sum().backward()
    assert found[1].item() == 0 and (found >= 0).all()
    assert ratios.grad is not None and ratios.grad[0].item() == pytest.approx(-1) and ratios.grad[1].item() == 0


def test_the_minimum_is_where_the_model_agrees_with_the_label():
    margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0.8], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([margin], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = soft_dpo_loss(margin, label, 0.5).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.sigmoid(0.5 * margin).item() == pytest.approx(0.8, abs=1e-5)


def preference(label: float | None) -> Preference:
    prompt = Prompt(id="p", pool="ordinary", kind="k", split="train", messages=[Message(role="user", content="q")])
    pair = Comparison(id="p", prompt=prompt, reply_a="a", reply_b="b", seed_a=0, seed_b=1)
    return Preference(comparison=pair, judgements=[], probability_a=label, labeller="l", template="t")


def test_what_is_trained_on():
    preferences = [preference(label) for label in (None, 0.5, 0.55, 0.9, 0.2)]
    soft = compose_config([]).align
    assert [row["label_a"] for row in trainable(preferences, soft)] == [0.5, 0.55, 0.9, 0.2]
    sure = compose_config(["align.min_confidence=0.1"]).align
    assert [row["label_a"] for row in trainable(preferences, sure)] == [0.9, 0.2]
    hard = compose_config(["align.hard_labels=true"]).align
    assert [row["label_a"] for row in trainable(preferences, hard)] == [1.0, 1.0, 0.0]


def test_every_update_sees_the_whole_global_batch():
    from pipeline.training.loop import whole_batches

    assert whole_batches([1, 2, 3], 4) == [1, 2, 3, 1]
    assert whole_batches([1, 2], 5) == [1, 2, 1, 2, 1]
    assert whole_batches([1, 2, 3, 4], 2) == [1, 2, 3, 4]
