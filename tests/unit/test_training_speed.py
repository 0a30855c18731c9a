"""What makes training faster on CPUs changes no result: attention in plain products, and rows sorted by length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.training import attention
from pipeline.training.attention import attend_in_products
from pipeline.training.batches import LengthSorted, length_of

IDS = torch.tensor([[5, 6, 7, 8, 9, 0], [15, 16, 17, 18, 19, 20]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])


def loaded(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model


def logits_and_gradients(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """In 32 bits, where rounding hides no difference."""
    logits = model.float()(input_ids=IDS, attention_mask=MASK, use_cache=False).logits[MASK == 1]
    (logits**2).mean().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return logits.detach(), torch.cat(gradients)


@pytest.mark.parametrize("most_scores", [attention.MOST_SCORES, 0], ids=["in products", "too long for it"])
def test_attention_in_products_changes_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, most_scores: int):
    expected, expected_gradients = logits_and_gradients(loaded(tiny_model))
    model, fused = loaded(tiny_model), []
    attend_in_products(model)
    monkeypatch.setattr(attention, "MOST_SCORES", most_scores)
    whole = attention.sdpa_attention_forward
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *a, **k: fused.append(1) or whole(*a, **k))
    found, gradients = logits_and_gradients(model)
    assert bool(fused) == (most_scores == 0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(gradients, expected_gradients, rtol=1e-3, atol=1e-6)


def test_the_kind_of_attention_is_not_saved_with_the_model(tiny_model: Path, tmp_path: Path):
    model = loaded(tiny_model)
    attend_in_products(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_sorting_keeps_the_global_batches():
    lengths = [(7 * number) % 23 for number in range(32)]
    drawn, rows = SeedableRandomSampler(lengths, data_seed=3), LengthSorted(lengths, 8, seed=3)
    orders = []
    for epoch in range(2):
        drawn.set_epoch(epoch)
        rows.set_epoch(epoch)
        expected, order = list(drawn), list(rows)
        for start in range(0, 32, 8):
            batch = order[start : start + 8]
            assert set(batch) == set(expected[start : start + 8])
            assert [lengths[row] for row in batch] == sorted(lengths[row] for row in batch)
        orders.append(order)
    assert orders[0] != orders[1]


def test_lengths_of_rows():
    assert length_of({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}) == 3
    assert length_of({"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [3, 4, 5], "label_a": 0.5}) == 5
