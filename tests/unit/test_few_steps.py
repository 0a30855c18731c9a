"""A few steps of LoRA on a model in memory: what is learned, and that it leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.core.errors import NotMeasuredError
from pipeline.engines.models import ModelConfig
from pipeline.engines.next_tokens import Reply
from pipeline.training.few_steps import few_steps


def test_fine_tuning_makes_openings_likelier_and_leaves_the_model_as_it_was(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    opening = tokenizer("sure, here is how").input_ids
    rows = [Reply(tokenizer(f"how do i open door {number}").input_ids, opening) for number in range(6)]

    def nats_per_token() -> float:
        """By hand, over all rows."""
        with torch.no_grad():
            logs = [model(torch.tensor([row.prompt + row.reply])).logits[0].log_softmax(-1) for row in rows]
        taken = [
            row[len(r.prompt) - 1 + i, t] for row, r in zip(logs, rows, strict=True) for i, t in enumerate(r.reply)
        ]
        return -float(torch.stack(taken).mean())

    drawn = torch.get_rng_state()
    config = ModelConfig(name="m", path="p")
    nats, again = [], []
    for found in (nats, again):
        for num_steps, loss, _ in few_steps(model, rows, [0, 5, 10], config, 1e-2, 6, seed=3):
            assert loss == pytest.approx(nats_per_token(), abs=1e-4)  # the adapter is inside the model
            found.append((num_steps, loss))
    assert [num_steps for num_steps, _ in nats] == [0, 5, 10] and nats == again
    assert nats[0][1] > nats[1][1] + 0.2 and nats[1][1] > nats[2][1] + 0.2
    assert nats[0][1] == pytest.approx(nats_per_token(), abs=1e-4)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], weight) for name, weight in before.items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_loss_that_is_no_number_is_not_measured_and_the_adapter_comes_off(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    names = list(model.state_dict())
    with torch.no_grad():
        model.lm_head.weight[0] = float("inf")
    with pytest.raises(NotMeasuredError, match="not a number"):
        list(few_steps(model, [Reply([1], [2])], [0, 1], ModelConfig(name="m", path="p"), 1e-2, 1, seed=0))
    assert list(model.state_dict()) == names
