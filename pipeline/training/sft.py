"""Supervised fine-tuning on revisions and helpful samples (Bai et al. 2022, section 3), through TRL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from pipeline.core.stage import Context
from pipeline.records import TrainingRow
from pipeline.training.config import TrainConfig
from pipeline.training.logprobs import reply_logprobs
from pipeline.training.loop import Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import load_policy, lora_config, save_checkpoint


class ReplySFTTrainer(Quiet, SFTTrainer):
    """TRL's trainer with the cross-entropy of the replies computed where the replies are."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        assert not return_outputs, "this trainer is never asked for logits"
        logprobs = reply_logprobs(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        if num_items_in_batch is None:
            return -logprobs.sum() / (inputs["labels"][:, 1:] != -100).sum().clamp(min=1)
        # The count is that of the whole global batch; data parallelism averages gradients over ranks.
        return -logprobs.sum() / num_items_in_batch * self.accelerator.num_processes


def train_sft(
    rows: Sequence[TrainingRow], config: TrainConfig, context: Context
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Teach the replies, and only them: the loss leaves the prompts out. Returns metrics and the log history."""
    model, tokenizer = load_policy(context.model.path, context.model)
    reporter = Reporter("supervised fine-tuning", context.tracker)
    arguments = training_arguments(config, context.model, context.launch, context.seed, context.work)
    trainer = ReplySFTTrainer(
        model=model,
        args=TrlSftConfig(**arguments, completion_only_loss=True, packing=False),
        train_dataset=Dataset.from_list(
            [
                {"prompt": row.messages, "completion": [{"role": "assistant", "content": row.reply}]}
                for row in whole_batches(rows, config.global_batch_size)
            ]
        ),
        processing_class=tokenizer,
        peft_config=lora_config(context.model),
        callbacks=[reporter],
    )
    metrics = train(trainer, reporter, context.meter)
    save_checkpoint(trainer, context.model.path, context.model, context.out)
    return metrics, reporter.history
