"""Computing the shared prefix of all rows only once changes no value and no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engines.prefix import common_length
from pipeline.training.logprobs import pair_logprobs, reply_logprobs

SHARED = list(range(20, 32))  # what all prompts begin with


def batch(replies_begin_at: tuple[int, ...] = (14, 17)) -> dict[str, torch.Tensor]:
    rows = [[*SHARED, 40, 41, 50, 51, 52], [*SHARED, 60, 61, 62, 63, 70, 71, 72, 73]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for row, start in enumerate(replies_begin_at):
        labels[row, :start] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_the_common_beginning():
    assert common_length(batch()["input_ids"].tolist()) == 12
    assert common_length(batch()["input_ids"][:1].tolist()) == 0, "one row shares with nobody"
    assert common_length([[1, 2, 3], [1, 2, 4]]) == 0, "too little to be worth it"
    alike = torch.arange(20).repeat(2, 1)
    assert common_length(alike.tolist()) == 19, "the last token must be read: it predicts the first of the reply"


@pytest.mark.parametrize("starts", [(14, 17), (12, 12), (5, 17)])
def test_sharing_changes_nothing(tiny_model: Path, starts: tuple[int, ...]):
    """Replies may begin right after the shared part, or within it."""
    found = []
    for share in (True, False):
        model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
        for module in model.modules():  # recomputing activations is what switches sharing off
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = not share
        logprobs = reply_logprobs(model, **batch(starts))
        logprobs.sum().backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        found.append((logprobs.detach(), torch.cat(gradients)))
    with torch.no_grad():
        whole = model(**{name: batch(starts)[name] for name in ("input_ids", "attention_mask")}).logits
    targets = batch(starts)["labels"][:, 1:]
    expected = whole[:, :-1].log_softmax(-1).gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0] * (targets != -100)
    (shared, shared_gradients), (plain, plain_gradients) = found
    assert torch.allclose(plain, expected, atol=1e-5)
    assert shared.shape == (2, 19) and torch.allclose(shared, plain, atol=1e-5)
    assert torch.allclose(shared_gradients, plain_gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beginning", [SHARED, [20]], ids=["a common beginning", "none"])
def test_reading_prompts_once_for_both_replies_changes_nothing(tiny_model: Path, beginning: list[int]):
    prompts = [[*beginning, 40, 41], [*beginning[:-1], 43, 60, 61, 62, 63], [*beginning, 44]]
    replies = [[50, 51, 52], [70], [80, 81], [53], [71, 72, 73, 74], [82, 83]]  # all A's, then all B's
    rows = [prompt + reply for prompt, reply in zip(prompts * 2, replies, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for row, prompt in enumerate(prompts * 2):
        labels[row, : len(prompt)] = -100
    found = []
    for once in (True, False):
        model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
        logprobs = pair_logprobs(model, ids, mask, labels)
        if not once:
            each = reply_logprobs(model, ids, mask, labels)
            assert logprobs.shape == (6, 4) and torch.allclose(logprobs.sum(dim=1), each.sum(dim=1), atol=1e-4)
            assert torch.allclose(logprobs[4], each[4, len(prompts[1]) - 1 :][:4], atol=1e-4)
            model.zero_grad()
            logprobs = each
        logprobs = logprobs.sum(dim=1)
        (logprobs * torch.arange(1, 7)).sum().backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        found.append((logprobs.detach(), torch.cat(gradients)))
    (once, once_gradients), (plain, plain_gradients) = found
    assert torch.allclose(once, plain, atol=1e-4)
    assert torch.allclose(once_gradients, plain_gradients, rtol=1e-3, atol=1e-3)
