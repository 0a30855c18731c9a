"""Join the adapters that were trained one after the other into one on the model before the first.

Each adapter adds s·B·A to a weight (Hu et al. 2021, arXiv 2106.09685, section 4.1, s = alpha / rank). The sum over
adapters is one product: the A below each other, and the s·B beside each other. So the joined rank is the sum of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.errors import ConfigError
from pipeline.engines.models import ModelConfig, load_model, load_tokenizer, resolve_path
from pipeline.training.models import CHECK_TEXT, revision_of

WEIGHTS = "adapter_model.safetensors"
IN_32_BITS, IN_16_BITS = 1e-3, 0.05  # largest relative difference of logits; in 16 bits, each merge rounds


def join_adapters(folders: Sequence[Path], base: str, revision: str | None, out: Path) -> int:
    """Write the sum of adapters as one adapter to ``out``. Returns its rank.

    Args:
        folders: in the order in which they were trained.
        base: what the adapter's configuration names as its model.

    Raises:
        ConfigError: an adapter has more than products of two matrices.
    """
    configs = [peft.LoraConfig.from_pretrained(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if reason := _not_a_product(config):
            raise ConfigError(f"--to adapter: {folder} {reason}, so it can't be joined; use --to merged.")
    weights = [load_file(folder / WEIGHTS) for folder in folders]
    ranks = [config.r for config in configs]
    joined: dict[str, torch.Tensor] = {}
    for name in sorted({name for one in weights for name in one}):
        like = next(one[name] for one in weights if name in one)
        parts = [_part(one.get(name), name, like, config) for one, config in zip(weights, configs, strict=True)]
        joined[name] = torch.cat(parts, dim=1 if _is_b(name) else 0).contiguous()
    config = configs[-1]
    config.r = config.lora_alpha = sum(ranks)
    config.base_model_name_or_path, config.revision = base, revision
    config.target_modules = sorted({_module(name) for name in joined})
    config.exclude_modules = None
    config.inference_mode = True
    out.mkdir(parents=True, exist_ok=True)
    save_file(joined, out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)  # the library lets only its owner read it
    config.save_pretrained(out)
    return int(config.r)


def _not_a_product(config: peft.LoraConfig) -> str:
    """Why an adapter is more than one product for each module; empty if it is not."""
    if config.use_dora:
        return "is a DoRA adapter"
    if config.bias != "none" or config.modules_to_save or config.trainable_token_indices:
        return "also has whole weights"
    if config.target_parameters or config.rank_pattern or config.alpha_pattern:
        return "has other ranks for some weights"
    return ""


def _part(weight: torch.Tensor | None, name: str, like: torch.Tensor, config: peft.LoraConfig) -> torch.Tensor:
    """A, or s·B, of one adapter; zeros where it has none."""
    if weight is None:
        shape = list(like.shape)
        shape[1 if _is_b(name) else 0] = config.r
        return like.new_zeros(shape)
    scaling = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    return weight * scaling if _is_b(name) else weight


def _is_b(name: str) -> bool:
    return ".lora_B" in name or ".lora_embedding_B" in name


def _module(name: str) -> str:
    """The module's whole name in the model before the adapter."""
    return name.partition(".lora_")[0].removeprefix("base_model.model.")


@torch.no_grad()
def check_joined(adapter: Path, config: ModelConfig, merged: Path) -> float:
    """Compare the model with the joined adapter with the merged checkpoint. Returns the relative error of the logits.

    The two are loaded one after the other.

    Raises:
        ConfigError: they compute different things.
    """
    path = resolve_path(config.path)
    tokenizer = load_tokenizer(str(merged))
    ids = torch.tensor([tokenizer(CHECK_TEXT)["input_ids"]])
    wanted = _logits(load_model(str(merged), config.precision), ids)
    base = load_model(path, config.precision, revision_of(path, config))
    most = IN_32_BITS if base.dtype == torch.float32 else IN_16_BITS
    found = _logits(peft.PeftModel.from_pretrained(base, str(adapter)), ids)
    error = float((found - wanted).norm() / wanted.norm())
    if not error <= most:
        raise ConfigError(
            f"--to adapter: with the joined adapter, {config.path} computes other logits than the checkpoint (by "
            f"{error:.1%}); it may not be the model that the run began with; use --to merged."
        )
    return error


def _logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    model.eval()
    device = next(model.parameters()).device
    logits: torch.Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return logits.float().cpu()
