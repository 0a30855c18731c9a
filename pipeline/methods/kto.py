"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306): single replies, wanted or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from pipeline.chain.config_train import AlignConfig
from pipeline.records import derived_rng
from pipeline.training.loop import Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import load_policy, lora_config, save_checkpoint
from pipeline.training.setting import Setting


class QuietKTOTrainer(Quiet, KTOTrainer): ...


def wanted_or_not(pairs: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Preference rows as single replies: the better one of each pair is wanted, the other is not; ties say nothing.

    Wanted and unwanted take turns, so that every batch has both. A pair's two replies stand half a list apart: TRL
    estimates the KL from a prompt with its neighbour's completion, which must not be one of its own.
    """
    decided = [pair for pair in pairs if pair["label_a"] != 0.5]
    derived_rng(seed, "kto").shuffle(decided)
    return [_single(pair, wanted=(number + turn) % 2 == 0) for turn in (0, 1) for number, pair in enumerate(decided)]


def _single(pair: dict[str, Any], wanted: bool) -> dict[str, Any]:
    a_is_better = pair["label_a"] > 0.5
    completion = pair["chosen"] if a_is_better == wanted else pair["rejected"]  # TRL's names for replies A and B
    return {"prompt": pair["prompt"], "completion": completion, "label": wanted}


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
        train_dataset=Dataset.from_list(whole_batches(wanted_or_not(pairs, setting.seed), config.global_batch_size)),
        processing_class=tokenizer,
        peft_config=lora_config(setting.model),
        callbacks=[reporter],
    )
    metrics = train(trainer, reporter, setting.watch)
    save_checkpoint(trainer, base_path, setting.model, setting.out)
    return metrics, reporter.history
