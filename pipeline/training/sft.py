"""Supervised fine-tuning on revisions and helpful samples (Bai et al. 2022, section 3), through TRL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import SFTConfig as TrlSftConfig
from trl import SFTTrainer

from pipeline.chat import Renderer
from pipeline.core.stage import Context
from pipeline.records import TrainingRow
from pipeline.training.batches import SortsByLength
from pipeline.training.config import TrainConfig
from pipeline.training.logprobs import reply_logprobs
from pipeline.training.loop import Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import load_policy, lora_config, save_checkpoint
from pipeline.training.rows import cut_to_length

ROUTER_SETTINGS = ("output_router_logits", "router_aux_loss_coef")


class ReplySFTTrainer(SortsByLength, Quiet, SFTTrainer):
    """TRL's SFT trainer; logits and cross-entropy are computed only for reply tokens."""

    def __init__(self, *args: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        # TRL turns on a loss for the routers of experts in the configuration, which is then saved with the model.
        config = model.config.get_text_config()
        saved = {name: getattr(config, name) for name in ROUTER_SETTINGS if hasattr(config, name)}
        super().__init__(*args, model=model, **kwargs)
        for name, value in saved.items():
            setattr(config, name, value)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        assert not return_outputs, "this trainer returns no logits"
        logprobs = reply_logprobs(model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        if num_items_in_batch is None:
            return -logprobs.sum() / (inputs["labels"][:, 1:] != -100).sum().clamp(min=1)
        # The count is that of the global batch; data parallelism averages gradients over ranks, so multiply by them.
        return -logprobs.sum() / num_items_in_batch * self.accelerator.num_processes


def in_tokens(row: TrainingRow, chat: Renderer) -> dict[str, list[int]]:
    """The tokens of the prompt and of the reply. Only a whole reply has an end of turn."""
    reply_ids = chat.text_ids(row.reply) if row.begun else chat.reply_ids(row.reply)
    return {"prompt_ids": chat.prompt_ids(row.messages), "completion_ids": reply_ids}


def tokenised(
    rows: Sequence[TrainingRow], chat: Renderer, most: int
) -> tuple[list[dict[str, list[int]]], dict[str, int]]:
    """Tokenise into TRL's columns, at most ``most`` tokens per row. Labels are -100 except for the reply and its end.

    Returns:
        the rows, and how many were cut or left out (see ``cut_to_length``).

    Raises:
        ConfigError: every prompt has ``most`` or more tokens without its reply.
    """
    fitting, counts = cut_to_length([in_tokens(row, chat) for row in rows], most, "sft.max_length_tokens")
    return [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["completion_ids"],
        }
        for row in fitting
    ], counts


def train_sft(
    rows: Sequence[TrainingRow], config: TrainConfig, context: Context
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Fine-tune on the replies; prompts are not in the loss. Returns metrics and the log history.

    Raises:
        ConfigError: every prompt has ``sft.max_length_tokens`` or more tokens without its reply.
    """
    model, tokenizer = load_policy(context.model.path, context.model)
    chat = Renderer(tokenizer, model.generation_config.eos_token_id)
    row_ids, counts = tokenised(rows, chat, config.max_length_tokens)
    reporter = Reporter("supervised fine-tuning", context.tracker)
    arguments = training_arguments(config, context.model, context.launch, context.seed, context.work)
    trainer = ReplySFTTrainer(
        model=model,
        args=TrlSftConfig(**arguments, packing=False),
        train_dataset=Dataset.from_list(whole_batches(row_ids, config.global_batch_size)),
        processing_class=tokenizer,
        peft_config=lora_config(context.model, model),
        callbacks=[reporter],
    )
    metrics = train(trainer, reporter, context.meter)
    save_checkpoint(trainer, context.model.path, context.model, context.out)
    return {**counts, **metrics}, reporter.history
