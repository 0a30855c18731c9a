"""QLoRA trains an adapter on weights in 4 bits, on a CPU too. Needs ``bitsandbytes``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.chain.config import Config
from pipeline.chain.runner import run
from pipeline.training.history import read_history

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_the_adapter_is_trained_on_4_bits_and_merged_into_whole_weights(
    tiny: Callable[..., Config], tiny_model: Path, method: str
):
    stages = run(tiny(f"align={method}", "model.tuning=qlora", "until=align", "sft.learning_rate=1e-2")).stages
    before, folder = load_file(tiny_model / "model.safetensors"), stages["sft"].folder
    assert len({row["loss"] for row in read_history(folder)}) > 1
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    after = load_file(folder / "model" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    assert b.any(), "it was trained"
    assert torch.allclose(after[f"{name}.weight"], before[f"{name}.weight"] + 2 * b @ a, atol=1e-5)
    assert (stages["align"].folder / "model" / "model.safetensors").exists()
