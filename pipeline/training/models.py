"""A policy to train and the checkpoint it becomes: LoRA, QLoRA or full, merged into one folder that loads anywhere."""

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
    """The weights to start from, quantised to 4 bits for QLoRA.

    Full fine-tuning keeps its weights in fp32 and lets autocast lower the arithmetic: an AdamW step of 1e-5 is lost
    in bf16's rounding.
    """
    path = resolve_path(path)
    revision = revision_of(path, config)
    model = load_model(path, training_precision(config), revision, **quantisation(config))
    return model, load_tokenizer(path, revision)


def training_precision(config: ModelConfig) -> str:
    return "fp32" if config.tuning == "full" else config.precision


def quantisation(config: ModelConfig) -> dict[str, Any]:
    """What ``from_pretrained`` is told for QLoRA; nothing else."""
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
    """The revision belongs to the base model's hub id; a folder has none."""
    return None if Path(path).is_dir() else config.revision


def lora_config(
    config: ModelConfig, model: PreTrainedModel, task_type: str = "CAUSAL_LM", dropout: float | None = None
) -> peft.LoraConfig | None:
    """The adapter to train on a model, or None for full fine-tuning. ``dropout`` replaces the configured one."""
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
    """The modules of the layers that get no adapter, as a pattern for their names; every family numbers them so."""
    num_below = int(model.config.get_text_config().num_hidden_layers * (1 - upper_share))
    numbers = "|".join(map(str, range(num_below)))
    return rf".*\.(layers|h|blocks)\.({numbers})\..*" if num_below else None


def save_checkpoint(trainer: Trainer, base_path: str, config: ModelConfig, out: Path) -> None:
    """Write ``out/model``, whole and merged, and ``out/adapter`` where one was trained. Call on every rank."""
    if config.tuning == "full":
        trainer.save_model(str(out / "model"))
        if distributed.is_main():
            trainer.processing_class.save_pretrained(out / "model")
            (out / "model" / "training_args.bin").unlink(missing_ok=True)
        distributed.barrier()
        return
    save_adapter(trainer.accelerator.unwrap_model(trainer.model), base_path, config, out)


def save_adapter(model: peft.PeftModel, base_path: str, config: ModelConfig, out: Path) -> None:
    """Write the adapter, and the model it makes of its base. The model is merged afterwards. Call on every rank."""
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
    """Merge into the unquantised base: merging into 4-bit weights would round the adapter away."""
    base = load_model(base_path, config.precision, revision_of(base_path, config))
    return peft.PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def per_device_batch(global_batch: int, launch: LaunchConfig, on_cpu: int = 4) -> tuple[int, int]:
    """Divide the global batch: rows a device holds at once, and how many such steps make one update.

    Unless the launch says otherwise, a device takes the largest divisor of its share up to ``on_cpu`` rows (32 on a
    GPU); on a CPU more than 4 gain nothing and pad more, unless the rows are short.
    """
    share = global_batch // distributed.world_size()
    rows = largest_divisor(share, rows_a_device_holds(launch, on_cpu))
    return rows, share // rows


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= most)


def rows_a_device_holds(launch: LaunchConfig, on_cpu: int = 4) -> int:
    """The most rows that a device trains on at once."""
    return launch.per_device_batch_size or (32 if torch.cuda.is_available() else on_cpu)
