"""Load a policy for training (LoRA, QLoRA or full) and save it, merged, as a folder that transformers can load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.core import distributed
from pipeline.core.distributed import LaunchConfig
from pipeline.engines.models import ModelConfig, load_model, load_tokenizer, resolve_path, resolve_precision

if TYPE_CHECKING:
    from transformers import Trainer


def load_policy(path: str, config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the weights and the tokenizer to train from; for QLoRA, the weights are quantised to 4 bits.

    Full fine-tuning keeps the weights in fp32 and computes under autocast, because an AdamW step of 1e-5 would be
    rounded away in bf16.
    """
    path = resolve_path(path)
    revision = revision_of(path, config)
    model = load_model(path, training_precision(config), revision, **quantisation(config))
    return model, load_tokenizer(path, revision)


def training_precision(config: ModelConfig) -> str:
    return "fp32" if config.tuning == "full" else config.precision


def quantisation(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for QLoRA; otherwise none."""
    if config.tuning != "qlora":
        return {}
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=resolve_precision(config.precision),
    )
    return {"quantization_config": four_bits, "device_map": {"": distributed.default_device()}}


def revision_of(path: str, config: ModelConfig) -> str | None:
    """Return the configured revision for a hub id, and None for a folder."""
    return None if Path(path).is_dir() else config.revision


def lora_config(
    config: ModelConfig, model: PreTrainedModel, task_type: str = "CAUSAL_LM", dropout: float | None = None
) -> peft.LoraConfig | None:
    """Return the adapter's configuration, or None for full fine-tuning. ``dropout`` overrides the configured one."""
    if config.tuning == "full":
        return None
    return peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout if dropout is None else dropout,
        target_modules=config.lora.target_modules,
        exclude_modules=_layers_below(model, config.lora.upper_share),
        task_type=task_type,
    )


def _layers_below(model: PreTrainedModel, upper_share: float) -> str | None:
    """A regular expression for the modules of the layers without an adapter; None if all layers get one."""
    num_below = int(model.config.get_text_config().num_hidden_layers * (1 - upper_share))
    numbers = "|".join(map(str, range(num_below)))
    return rf".*\.(layers|h|blocks)\.({numbers})\..*" if num_below else None


def save_checkpoint(trainer: Trainer, base_path: str, config: ModelConfig, out: Path) -> None:
    """Write ``out/model`` (merged), and ``out/adapter`` if an adapter was trained. Call on every rank."""
    if config.tuning == "full":
        trainer.save_model(str(out / "model"))
        if distributed.is_main():
            trainer.processing_class.save_pretrained(out / "model")
            (out / "model" / "training_args.bin").unlink(missing_ok=True)
        distributed.barrier()
        return
    save_adapter(trainer.accelerator.unwrap_model(trainer.model), base_path, config, out)


def save_adapter(model: peft.PeftModel, base_path: str, config: ModelConfig, out: Path) -> None:
    """Write ``out/adapter`` and the merged ``out/model``. Call on every rank. ``model`` may be merged in place."""
    if distributed.is_main():
        model.save_pretrained(out / "adapter")
        path = resolve_path(base_path)
        merged = _merge(path, config, out / "adapter") if config.tuning == "qlora" else model.merge_and_unload()
        _write_model(merged, load_tokenizer(path, revision_of(path, config)), out)
    distributed.barrier()


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write ``out/model``. Call on every rank."""
    if distributed.is_main():
        _write_model(model, tokenizer, out)
    distributed.barrier()


def _write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")


def _merge(base_path: str, config: ModelConfig, adapter: Path) -> PreTrainedModel:
    """Merge the adapter into the base model without quantisation; in 4-bit weights it would be rounded away."""
    base = load_model(base_path, config.precision, revision_of(base_path, config))
    return peft.PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def per_device_batch(global_batch: int, launch: LaunchConfig, on_cpu: int = 4) -> tuple[int, int]:
    """Divide the global batch size: return the per-device batch size and the number of gradient accumulation steps.

    The per-device batch size is the largest divisor of the device's share that is at most
    ``launch.per_device_batch_size`` (default: 32 on a GPU, ``on_cpu`` on a CPU, where more rows only add padding).
    """
    share = global_batch // distributed.world_size()
    rows = largest_divisor(share, rows_a_device_holds(launch, on_cpu))
    return rows, share // rows


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= most)


def rows_a_device_holds(launch: LaunchConfig, on_cpu: int = 4) -> int:
    """The upper limit of the per-device batch size."""
    return launch.per_device_batch_size or (32 if torch.cuda.is_available() else on_cpu)
