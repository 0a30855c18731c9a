"""The memory that a stage needs on one device, by part: arithmetic on the model's configuration. Nothing is loaded.

Weights, gradients and AdamW's states are counted as in ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1),
stored activations layer by layer as in Korthikanti et al. 2022 (arXiv 2205.05198, section 4), here for a gated MLP, RMS
norms in 32 bits and attention that stores no scores (on a CPU in 16 bits it does, but at most 8 MiB in each layer:
``attention.MOST_SCORES``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.core.distributed import LaunchConfig
from pipeline.core.stage import Memory, Prepared
from pipeline.engines.hf import SCORED_ROWS
from pipeline.engines.local import batch_limits
from pipeline.engines.models import ModelConfig, resolve_path, resolve_precision
from pipeline.engines.states import BATCH_TOKENS
from pipeline.training.config import TrainConfig
from pipeline.training.models import (
    largest_divisor,
    lora_config,
    revision_of,
    rows_a_device_holds,
    training_precision,
)

GIB = 2**30
ONEDNN_GIB = 0.6
BYTES_OF_4_BITS = 0.57  # a weight of 4 bits, with its scales of 8 bits for 64 weights each, and theirs


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model. Numbers of elements, where nothing else is said."""

    num_parameters: int
    num_trained: int
    """Of the adapter, or of all weights in full fine-tuning."""
    num_layers: int
    num_trained_layers: int
    """Layers whose activations are stored for the backward pass."""
    hidden: int
    intermediate: int
    """Of the MLP."""
    keys_and_values: int
    """Of one token in one layer."""
    vocabulary: int
    bytes_to_train: float
    """Of a weight in training."""
    bytes_to_compute: int
    """Of an activation, and of a weight in generation."""


# --- Of stages -----------------------------------------------------------------------------------------------------


def of_generation(prepared: Prepared, num_scored_tokens: int = 0) -> Memory:
    """A stage that generates with the model to align, in batches as large as they may be.

    Args:
        num_scored_tokens: of a reply that it also scores.
    """
    config = prepared.config
    if config.policy_engine.kind != "hf":
        return Memory()
    return generation(shape_of(config.model), *batch_limits(config.launch), num_scored_tokens)


def of_states(prepared: Prepared) -> Memory:
    """Reading the hidden states of prompts with the model to align. Nothing is counted for another engine: the states
    are left out if the model does not fit beside it."""
    if prepared.config.policy_engine.kind != "hf":
        return Memory()
    shape = shape_of(prepared.config.model)
    return Memory(
        weights=shape.num_parameters * shape.bytes_to_compute / GIB,
        activations=BATCH_TOKENS * layer_bytes_per_token(shape) / GIB,
        kernels=_kept_by_onednn(shape),
    )


def of_training(
    stage: str, prepared: Prepared, config: TrainConfig, num_reply_tokens: int, num_replies: int = 1, on_cpu: int = 4
) -> Memory:
    """A stage that trains the model on rows with ``num_replies`` replies each (2: pairs)."""
    launch = prepared.config.launch
    num_rows = largest_divisor(config.global_batch_size // launch.world_size, rows_a_device_holds(launch, on_cpu))
    longest = prepared.longest_prompt(stage) or config.max_length_tokens - num_reply_tokens
    num_prompts = num_replies if torch.cuda.is_available() else 1  # on a CPU, a pair's prompt is computed once
    prompt = min(longest, config.max_length_tokens - num_reply_tokens)
    return training(
        shape_of(prepared.config.model),
        num_rows,
        num_prompts * prompt + num_replies * num_reply_tokens,
        num_replies * num_reply_tokens,
        num_shards=num_shards(launch),
        checkpointing=recomputes(launch),
    )


def num_shards(launch: LaunchConfig) -> int:
    """Devices that divide weights, gradients and states."""
    return 1 if launch.sharding == "none" else launch.world_size


def recomputes(launch: LaunchConfig) -> bool:
    chosen = launch.gradient_checkpointing
    return torch.cuda.is_available() if chosen is None else chosen


# --- Arithmetic ----------------------------------------------------------------------------------------------------


def shape_of(config: ModelConfig) -> Shape:
    """Read the sizes from a model without weights."""
    path = resolve_path(config.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path, revision=revision_of(path, config)))
    text: Any = model.config.get_text_config()
    num_parameters = sum(weight.numel() for weight in model.parameters())
    adapter = lora_config(config, model)
    num_trained, share = num_parameters, 1.0
    if adapter is not None:
        adapted = peft.get_peft_model(model, adapter)
        num_trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
        share = config.lora.upper_share
    num_heads = getattr(text, "num_attention_heads", None) or 0  # Mamba and other recurrent models have none
    num_kv_heads = num_heads and (getattr(text, "num_key_value_heads", None) or num_heads)
    head = num_heads and (getattr(text, "head_dim", None) or text.hidden_size // num_heads)
    intermediate = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    to_train = resolve_precision(training_precision(config)).itemsize
    return Shape(
        num_parameters=num_parameters,
        num_trained=num_trained,
        num_layers=text.num_hidden_layers,
        num_trained_layers=text.num_hidden_layers - int(text.num_hidden_layers * (1 - share)),
        hidden=text.hidden_size,
        intermediate=max(intermediate) if isinstance(intermediate, list | tuple) else intermediate,  # Gemma 3n's
        keys_and_values=2 * num_kv_heads * head,
        vocabulary=text.vocab_size,
        bytes_to_train=BYTES_OF_4_BITS if config.tuning == "qlora" else to_train,
        bytes_to_compute=resolve_precision(config.precision).itemsize,
    )


def generation(shape: Shape, num_rows: int, num_tokens: int, num_scored_tokens: int) -> Memory:
    """Memory to generate and score with one model.

    Args:
        num_tokens: of all rows together, replies included.
        num_scored_tokens: of a reply that is scored.
    """
    per_token = shape.num_layers * shape.keys_and_values * shape.bytes_to_compute
    sampling = num_rows * 12  # in 32 bits: logits, probabilities, and their sorted copy
    scoring = SCORED_ROWS * num_scored_tokens * (shape.bytes_to_compute + 8)
    return Memory(
        weights=shape.num_parameters * shape.bytes_to_compute / GIB,
        activations=max(sampling, scoring) * shape.vocabulary / GIB,
        cache=num_tokens * per_token / GIB,
        kernels=_kept_by_onednn(shape),
    )


def training(
    shape: Shape,
    num_rows: int,
    num_tokens: int,
    num_reply_tokens: int,
    num_shards: int = 1,
    checkpointing: bool = False,
    num_copies: int = 1,
    num_adapters: int = 1,
) -> Memory:
    """Memory to train one model on ``num_rows`` rows at once.

    Args:
        num_tokens: of a row.
        num_reply_tokens: of a row; logits are computed only for them.
        num_shards: devices that divide weights, gradients and states.
        checkpointing: activations inside layers are computed again in the backward pass.
        num_copies: models in memory with weights of their own.
        num_adapters: trained adapters, or trained models in full fine-tuning.
    """
    inside = layer_bytes_per_token(shape)
    kept = 2 * shape.hidden * shape.bytes_to_compute  # a layer's input and the residual stream after it
    layers = shape.num_trained_layers * kept + inside if checkpointing else shape.num_trained_layers * inside
    logits = num_reply_tokens * shape.vocabulary * (2 * shape.bytes_to_compute + 8)
    return Memory(
        weights=num_copies * shape.num_parameters * shape.bytes_to_train / num_shards / GIB,
        optimiser=num_adapters * shape.num_trained * 12 / num_shards / GIB,
        activations=_kept_by_allocator() * num_rows * (num_tokens * layers + logits) / GIB,
        kernels=_kept_by_onednn(shape),
    )


def layer_bytes_per_token(shape: Shape) -> float:
    """What one layer stores for its backward pass, in bytes for each token.

    In 32 bits: the inputs of two norms (2 · hidden); the inputs of the projections, queries and the output of attention
    (4 · hidden); keys and values, repeated for each head (2 · hidden); four tensors of the MLP. In 16 bits, the norms'
    inputs are in 32 bits, keys and values are not repeated, and adapters store copies of what they read (4 · hidden).
    """
    num_hidden, keys_and_values = (6, 0) if shape.bytes_to_compute == 4 else (8, shape.keys_and_values)
    stored = num_hidden * shape.hidden + keys_and_values + 4 * shape.intermediate
    return 8 * shape.hidden + shape.bytes_to_compute * stored


def _kept_by_allocator() -> float:
    """On a CPU, the process keeps 1.8 times the activations: measured on three shapes of batch (docs/scale.md)."""
    return 1.0 if torch.cuda.is_available() else 1.8


def _kept_by_onednn(shape: Shape) -> float:
    """In 16 bits on a CPU, oneDNN compiles each matrix product of a new shape and keeps the last 1,024 of them: 0.6 GiB
    after training on rows of many lengths (docs/scale.md), whatever the model's size. They stay until the process ends,
    so later stages hold them, too. In 32 bits torch uses MKL."""
    return 0.0 if torch.cuda.is_available() or shape.bytes_to_compute == 4 else ONEDNN_GIB
