"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306): single replies, wanted or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from pipeline.config_train import AlignConfig
from pipeline.training.loop import Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import load_policy, lora_config, save_checkpoint
from pipeline.training.setting import Setting


class QuietKTOTrainer(Quiet, KTOTrainer): ...


def wanted_or_not(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Preference rows as single replies: the better one of each pair is wanted, the other is not; ties say nothing.

    The two stand side by side, so that every batch has as many of one kind as of the other.
    """
    rows = []
    for pair in pairs:
        if pair["label_a"] == 0.5:
            continue
        a_is_better = pair["label_a"] > 0.5
        rows += [
            {"prompt": pair["prompt"], "completion": pair["chosen"], "label": a_is_better},
            {"prompt": pair["prompt"], "completion": pair["rejected"], "label": not a_is_better},
        ]
    return rows


def train_kto(
    pairs: Sequence[dict[str, Any]], base_path: str, config: AlignConfig, setting: Setting
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Align the SFT model at ``base_path``, which is also the reference. Returns metrics and the log history."""
    model, tokenizer = load_policy(base_path, setting.model)
    reporter = Reporter("aligning (kto)", setting.tracker)
    arguments = training_arguments(config, setting.model, setting.launch, setting.seed, setting.work)
    trainer = QuietKTOTrainer(
        model=model,
        args=KTOConfig(**arguments, beta=config.beta, train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(whole_batches(wanted_or_not(pairs), config.global_batch_size)),
        processing_class=tokenizer,
        peft_config=lora_config(setting.model),
        callbacks=[reporter],
    )
    metrics = train(trainer, reporter, setting.watch)
    save_checkpoint(trainer, base_path, setting.model, setting.out)
    return metrics, reporter.history
