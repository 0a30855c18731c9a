"""Computing once what several rows begin with changes no value and no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import pipeline.training.logprobs as logprobs_module
from pipeline.engines.prefix import common_length
from pipeline.engines.trees import TokenTree, reads_trees
from pipeline.training.logprobs import pair_logprobs, reply_logprobs


@pytest.fixture
def counted_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass of a tree has."""
    counts: list[int] = []
    inputs = TokenTree.inputs

    def counting(tree: TokenTree, device: torch.device) -> dict[str, object]:
        counts.append(len(tree.tokens))
        return inputs(tree, device)

    monkeypatch.setattr(TokenTree, "inputs", counting)
    return counts


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
@pytest.mark.parametrize("most", [512, 14])
def test_trees_change_nothing(tiny_model: Path, starts: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch):
    """Replies may begin right after the shared part, or within it. Rows may need several trees."""
    monkeypatch.setattr(logprobs_module, "MOST_TOKENS", most)
    found = []
    for in_trees in (True, False):
        model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
        monkeypatch.setattr(logprobs_module, "reads_trees", lambda _, answer=in_trees: answer)
        logprobs = reply_logprobs(model, **batch(starts))
        logprobs.sum().backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        found.append((logprobs.detach(), torch.cat(gradients)))
    with torch.no_grad():
        whole = model(**{name: batch(starts)[name] for name in ("input_ids", "attention_mask")}).logits
    targets = batch(starts)["labels"][:, 1:]
    expected = whole[:, :-1].log_softmax(-1).gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0] * (targets != -100)
    (tree, tree_gradients), (plain, plain_gradients) = found
    assert torch.allclose(plain, expected, atol=1e-5)
    assert tree.shape == (2, 19) and torch.allclose(tree, plain, atol=1e-5)
    assert torch.allclose(tree_gradients, plain_gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beginning", [SHARED, [20]], ids=["a common beginning", "none"])
def test_both_replies_of_a_pair_begin_in_the_first_column(tiny_model: Path, beginning: list[int]):
    prompts = [[*beginning, 40, 41], [*beginning[:-1], 43, 60, 61, 62, 63], [*beginning, 44]]
    replies = [[50, 51, 52], [70], [80, 81], [53], [71, 72, 73, 74], [82, 83]]  # all A's, then all B's
    rows = [prompt + reply for prompt, reply in zip(prompts * 2, replies, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for row, prompt in enumerate(prompts * 2):
        labels[row, : len(prompt)] = -100
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    logprobs = pair_logprobs(model, ids, mask, labels)
    each = reply_logprobs(model, ids, mask, labels)
    assert logprobs.shape == (6, 4) and torch.allclose(logprobs.sum(dim=1), each.sum(dim=1), atol=1e-4)
    assert torch.allclose(logprobs[4], each[4, len(prompts[1]) - 1 :][:4], atol=1e-4)


def test_a_prompt_is_computed_once_for_both_replies(tiny_model: Path, counted_tokens: list[int]):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    reads_trees(model)  # computes a few rows, too
    counted_tokens.clear()
    prompt = [*SHARED, 40, 41]
    ids = torch.tensor([[*prompt, 50, 51], [*prompt, 60, 61]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    pair_logprobs(model, ids, torch.ones_like(ids), labels)
    assert counted_tokens == [len(prompt) + 4]
