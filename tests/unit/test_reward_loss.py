"""The loss of the reward model, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.training.reward import centring_loss, soft_bradley_terry_loss

MARGINS = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
LABELS = torch.tensor([0.1, 0.5, 0.7, 0.9], dtype=torch.float64)


def test_the_loss_is_cross_entropy_and_bradley_terrys_where_labels_are_certain():
    by_hand = [
        -p * math.log(1 / (1 + math.exp(-m))) - (1 - p) * math.log(1 / (1 + math.exp(m)))
        for p, m in zip(LABELS.tolist(), MARGINS.tolist(), strict=True)
    ]
    assert soft_bradley_terry_loss(MARGINS, LABELS).tolist() == pytest.approx(by_hand)
    ones = torch.ones_like(MARGINS)
    assert torch.equal(soft_bradley_terry_loss(MARGINS, ones), -F.logsigmoid(MARGINS))
    assert torch.allclose(soft_bradley_terry_loss(-MARGINS, 1 - LABELS), soft_bradley_terry_loss(MARGINS, LABELS))
    assert centring_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 1.0])).tolist() == [0, 9]


def test_the_minimum_is_where_the_model_agrees_with_the_label():
    margins = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([margins], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = soft_bradley_terry_loss(margins, LABELS).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.sigmoid(margins).tolist() == pytest.approx(LABELS.tolist(), abs=1e-5)
