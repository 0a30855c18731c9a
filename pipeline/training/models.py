"""A policy to train and the checkpoint it becomes: LoRA, QLoRA or full, merged into one folder that loads anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline import distributed
from pipeline.config import LaunchConfig, ModelConfig
from pipeline.engines.models import load_model, load_tokenizer, resolve_path, resolve_precision

if TYPE_CHECKING:
    from transformers import Trainer


def load_policy(path: str, config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The weights to start from, quantised to 4 bits for QLoRA.

    Full fine-tuning keeps its weights in fp32 and lets autocast lower the arithmetic: an AdamW step of 1e-5 is lost
    in bf16's rounding.
    """
    path = resolve_path(path)
    revision = _revision(path, config)
    options: dict[str, Any] = {}
    if config.tuning == "qlora":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=resolve_precision(config.precision),
        )
        options["device_map"] = {"": distributed.default_device()}
    precision = "fp32" if config.tuning == "full" else config.precision
    return load_model(path, precision, revision, **options), load_tokenizer(path, revision)


def _revision(path: str, config: ModelConfig) -> str | None:
    """The revision belongs to the base model's hub id; a folder has none."""
    return None if Path(path).is_dir() else config.revision


def lora_config(config: ModelConfig) -> peft.LoraConfig | None:
    """The adapter to train, or None for full fine-tuning."""
    if config.tuning == "full":
        return None
    return peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        task_type="CAUSAL_LM",
    )


def save_checkpoint(trainer: Trainer, base_path: str, config: ModelConfig, out: Path) -> None:
    """Write ``out/model``, whole and merged, and ``out/adapter`` where one was trained. Call on every rank."""
    if config.tuning == "full":
        trainer.save_model(str(out / "model"))
        if distributed.is_main():
            trainer.processing_class.save_pretrained(out / "model")
            (out / "model" / "training_args.bin").unlink(missing_ok=True)
        distributed.barrier()
        return
    if distributed.is_main():
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(out / "adapter")
        path = resolve_path(base_path)
        merged = _merge(path, config, out / "adapter") if config.tuning == "qlora" else model.merge_and_unload()
        merged.save_pretrained(out / "model")
        load_tokenizer(path, _revision(path, config)).save_pretrained(out / "model")
    distributed.barrier()


def _merge(base_path: str, config: ModelConfig, adapter: Path) -> PreTrainedModel:
    """Merge into the unquantised base: merging into 4-bit weights would round the adapter away."""
    base = load_model(base_path, config.precision, _revision(base_path, config))
    return peft.PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def per_device_batch(global_batch: int, launch: LaunchConfig) -> tuple[int, int]:
    """Divide the global batch: rows a device holds at once, and how many such steps make one update.

    Unless the launch says otherwise, a device takes the largest divisor of its share up to 4 rows (32 on a GPU); on a
    CPU larger ones gain nothing and pad more.
    """
    share = global_batch // distributed.world_size()
    most = launch.per_device_batch_size or (32 if torch.cuda.is_available() else 4)
    rows = max(size for size in range(1, share + 1) if share % size == 0 and size <= most)
    return rows, share // rows
