"""Parts of the models of a method: backbones, heads, and weights of adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.core import distributed
from pipeline.engines.reward_model import reward_scaling


def trunk_of(model: Any) -> nn.Module:
    """The backbone: the transformer without its head."""
    trunk = model.model if model.base_model is model else model.base_model  # Llama 4 has the wrong name for its own
    assert isinstance(trunk, nn.Module)
    return trunk


def score_head(model: Any) -> nn.Linear:
    """The head of a sequence classifier: ``score`` or ``classifier``, by model family."""
    head = next((getattr(model, name) for name in ("score", "classifier") if hasattr(model, name)), None)
    assert isinstance(head, nn.Linear), "preflight refuses other reward models"
    return head


def zero_head(model: Any) -> nn.Linear:
    """A value head in fp32; its weights and bias are 0."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=distributed.default_device())
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def set_scaled(head: nn.Linear, weight: torch.Tensor, reward: Path) -> None:
    """Set a head's weights so that it predicts the standardised reward: (w·h − mean) / std."""
    mean, std = reward_scaling(reward / "model")
    with torch.no_grad():
        head.weight.copy_(weight / std)
        head.bias.fill_(-mean / std)


def lora_part(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if ".lora_" in key}


def head_part(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    (head,) = (value for key, value in weights.items() if ".lora_" not in key)
    return head


def named(prefix: str, module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{prefix}.{key}": value for key, value in module.named_parameters()}


@contextmanager
def recomputing(models: Sequence[Any], checkpointing: bool) -> Iterator[None]:
    """With ``checkpointing``, recompute activations inside the block. transformers does this only in training mode,
    where it has no key-value cache, so the models return to evaluation mode afterwards. Dropout is 0 in all of them."""
    for model in models if checkpointing else ():
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    yield
    for model in models:
        model.eval()
