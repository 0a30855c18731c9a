"""Take one direction out of what the layers of a model compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.engines.states import layers_of


@contextmanager
def without_direction(model: PreTrainedModel, direction: torch.Tensor) -> Iterator[None]:
    """Within it, every layer's output at every position is projected: x − (x·d̂)d̂ (Arditi et al. 2024, arXiv
    2406.11717, section 2.4).

    Args:
        direction: (hidden,), of any length above zero; d̂ is the unit vector.

    Raises:
        NotMeasuredError: the model has no list of layers.
    """
    unit = torch.nn.functional.normalize(direction.double(), dim=0)

    def project(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        along = unit.to(states.device, torch.float32)
        wide = states.float()
        projected = (wide - (wide @ along)[..., None] * along).to(states.dtype)
        return (projected, *output[1:]) if isinstance(output, tuple) else projected

    hooks = [layer.register_forward_hook(project) for layer in layers_of(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
