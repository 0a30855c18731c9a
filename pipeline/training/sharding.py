"""Weights that the ranks divide among them (FSDP2): divide them, gather them, and read and write them whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.core import distributed


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FSDPModule) for module in model.modules())


def shard(model: Any, kept: Collection[nn.Parameter] = (), computed_in: torch.dtype | None = None) -> None:
    """Divide the weights of a model among the ranks, in place, layer by layer. Call on every rank.

    Args:
        model: a transformers model, or a module without layers.
        kept: weights that stay whole on each rank, such as adapters: they are few, and their roles change from one
            forward pass to the next.
        computed_in: forward and backward passes gather the weights in this dtype; None: in their own.
    """
    plugin = FullyShardedDataParallelPlugin()  # with the settings that Accelerate's launcher wrote to the environment
    for parameter in kept:
        parameter.data = parameter.data.to(distributed.default_device())
    options: dict[str, Any] = {
        "ignored_params": set(kept),
        "mp_policy": MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32 if computed_in else None),
    }
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in [module for module in model.modules() if type(module).__name__ in layers]:
        fully_shard(module, reshard_after_forward=plugin.reshard_after_forward, **options)
    fully_shard(model, **options)


@contextmanager
def gathered(models: Sequence[nn.Module]) -> Iterator[None]:
    """All weights whole on every rank, so that each may make as many forward passes as it likes. Call on every rank."""
    parts: list[Any] = [module for model in models for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
        part._is_fsdp_managed_module = False  # otherwise ``generate`` waits for the other ranks at every token
    try:
        yield
    finally:
        for part in parts:
            part._is_fsdp_managed_module = True
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the whole tensor on the CPU; of a divided one only on the main rank. Call on every rank."""
    if not isinstance(tensor, DTensor):
        return tensor.detach().cpu().clone()
    full: torch.Tensor = tensor.full_tensor().detach()
    return full.cpu() if distributed.is_main() else torch.empty(0)


def divided_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor, if the parameter is divided; else the tensor on the parameter's device."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole_weights(model: nn.Module, only_trained: bool = False) -> dict[str, torch.Tensor]:
    """Name → weight, on the CPU of the main rank; empty elsewhere. A tied weight has one name. Call on every rank."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=only_trained)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    own = {name for name, _ in model.named_parameters()}
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name not in own:
            weights.pop(name, None)
    return weights


def whole_optimizer(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state dict with whole tensors. Call on every rank."""
    return {
        **state,
        "state": {
            number: {name: whole(v) if isinstance(v, DTensor) else v for name, v in part.items()}
            for number, part in state["state"].items()
        },
    }


def divided_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of ``whole_optimizer``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        **state,
        "state": {
            number: {name: divided_like(v, parameters[number]) if name != "step" else v for name, v in part.items()}
            for number, part in state["state"].items()
        },
    }
