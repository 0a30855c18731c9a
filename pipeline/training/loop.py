"""Shared code of the TRL trainers: arguments, progress, tracking, and exact resumption."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from pipeline.core import distributed
from pipeline.core.distributed import LaunchConfig
from pipeline.core.log import Bar, Meter, say
from pipeline.core.memory import trim
from pipeline.core.tracking import Tracker
from pipeline.engines.models import ModelConfig, resolve_precision
from pipeline.training.config import TrainConfig
from pipeline.training.models import per_device_batch

Row = TypeVar("Row")
COMPLETE = "checkpoint.complete"


def training_arguments(
    config: TrainConfig, model: ModelConfig, launch: LaunchConfig, seed: int, work: Path, rows_on_cpu: int = 4
) -> dict[str, Any]:
    """Return the trainer arguments that all stages share. ``rows_on_cpu``: the largest per-device batch on a CPU."""
    rows, accumulation = per_device_batch(config.global_batch_size, launch, rows_on_cpu)
    on_gpu = torch.cuda.is_available()
    dtype = resolve_precision(model.precision)
    checkpointing = launch.gradient_checkpointing
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": config.num_epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_schedule,
        "warmup_steps": config.warmup_fraction,  # transformers 5 reads a number below 1 as a share of all steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "max_length": config.max_length_tokens,
        "seed": seed % 2**31,
        "data_seed": seed % 2**31,
        "use_cpu": not on_gpu,
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "gradient_checkpointing": on_gpu if checkpointing is None else checkpointing,
        "save_strategy": "steps",
        "save_steps": config.save_every_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
        "remove_unused_columns": False,
    }


def whole_batches(rows: Sequence[Row], global_batch: int) -> list[Row]:
    """Repeat the first rows until the last global batch is full. Otherwise Accelerate fills it up, and the rows that it
    repeats depend on the number of ranks."""
    return [*rows, *(rows[index % len(rows)] for index in range(-len(rows) % global_batch))]


class Reporter(TrainerCallback):
    """Shows progress, sends losses to the tracker, and marks each checkpoint when it is complete.

    ``names`` maps the trainer's names of metrics to ours.
    """

    def __init__(self, label: str, tracker: Tracker, names: Mapping[str, str] = MappingProxyType({})) -> None:
        self._label, self._tracker, self._names = label, tracker, names
        self.history: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.history = [self._renamed(row) for row in state.log_history if "loss" in row]
        self._bar = Bar(self._label, state.max_steps, quiet=not distributed.is_main()).__enter__()
        self._bar.advance(state.global_step, cached=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._bar.advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs and distributed.is_main():
            self.history.append(self._renamed({**logs, "step": state.global_step}))
            self._tracker.log({f"train/{k}": v for k, v in self._renamed(logs).items()}, step=state.global_step)

    def _renamed(self, row: Mapping[str, float]) -> dict[str, float]:
        return {self._names.get(name, name): value for name, value in row.items()}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        distributed.barrier()  # each rank writes a part
        if distributed.is_main():
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        trim()  # not at each step, because the system fills pages that it gives again with zeros

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar.__exit__(None, None, None)


class Quiet:
    """Mixin for TRL trainers: writes no model card into checkpoints (it would also query wandb for a URL)."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None: ...


class InTokens:
    """Mixin for TRL trainers whose rows are already token ids: it skips TRL's tokenisation.

    The method is not in TRL's public interface, so pyproject.toml pins TRL's minor version.
    """

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def last_whole_checkpoint(work: Path) -> str | None:
    """Delete incomplete checkpoints, and return the path of the newest complete one, or None."""
    if distributed.is_main():
        for folder in work.glob("checkpoint-*"):
            if not (folder / COMPLETE).exists():
                shutil.rmtree(folder)
    distributed.barrier()
    return get_last_checkpoint(str(work)) if work.is_dir() else None


def train(trainer: Trainer, reporter: Reporter, meter: Meter) -> dict[str, Any]:
    """Train, from the newest complete checkpoint if there is one.

    Returns:
        the number of steps, the step the run was resumed from (0: not resumed), and the first and last loss.
    """
    checkpoint = last_whole_checkpoint(Path(str(trainer.args.output_dir)))
    resumed_from = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
    if checkpoint and distributed.is_main():
        say(f"  resuming from step {resumed_from}")
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL casts the adapter of QLoRA to bf16, where small steps are rounded away
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    with meter.running():
        trainer.train(resume_from_checkpoint=checkpoint)
    losses = [row["loss"] for row in reporter.history]
    return {
        "num_steps": int(trainer.state.global_step),
        "resumed_from_step": resumed_from,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
    }
