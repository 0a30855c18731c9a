"""KTO through TRL, on single replies that are desirable or undesirable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from pipeline.chat import Renderer
from pipeline.core import distributed
from pipeline.core.stage import Context
from pipeline.records import derived_rng
from pipeline.training.loop import InTokens, Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import divided_reference, load_policy, lora_config, save_checkpoint
from pipeline.training.pairs import tokenised


class QuietKTOTrainer(InTokens, Quiet, KTOTrainer): ...


def wanted_or_not(pairs: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Split tokenised pairs into single replies: the better one is desirable, the other not; ties are dropped.

    Desirable and undesirable replies alternate, so that every batch has both. The replies of a pair are half a list
    apart: TRL estimates the KL from a prompt and the next row's completion, which must answer another prompt.
    """
    decided = [pair for pair in pairs if pair["label_a"] != 0.5]
    derived_rng(seed, "kto").shuffle(decided)
    return [_single(pair, wanted=(number + turn) % 2 == 0) for turn in (0, 1) for number, pair in enumerate(decided)]


def _single(pair: dict[str, Any], wanted: bool) -> dict[str, Any]:
    a_is_better = pair["label_a"] > 0.5
    side = "chosen" if a_is_better == wanted else "rejected"  # TRL's names for replies A and B
    return {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[f"{side}_ids"], "label": wanted}


def with_mismatched(rows: Sequence[dict[str, Any]], batch_rows: int) -> list[dict[str, Any]]:
    """Add to each row the previous completion of its per-device batch; TRL estimates the KL from it."""
    batches = [rows[start : start + batch_rows] for start in range(0, len(rows), batch_rows)]
    return [
        {**row, "KL_completion_ids": batch[place - 1]["completion_ids"]}
        for batch in batches
        for place, row in enumerate(batch)
    ]


def train_kto(
    pairs: Sequence[dict[str, Any]], base_path: str, config: Any, context: Context
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Align the SFT model at ``base_path``, which is also the reference. Returns metrics and the log history.

    Raises:
        ConfigError: every prompt has ``align.max_length_tokens`` or more tokens without its reply.
    """
    model, tokenizer = load_policy(base_path, context.model)
    chat = Renderer(tokenizer, model.generation_config.eos_token_id)
    in_tokens, counts = tokenised(pairs, chat, config.max_length_tokens)
    rows = whole_batches(wanted_or_not(in_tokens, context.seed), config.global_batch_size)
    reporter = Reporter("aligning (kto)", context.tracker)
    arguments = training_arguments(config, context.model, context.launch, context.seed, context.work)
    # The KL is estimated within these rows, so their number must not follow the hardware.
    arguments["per_device_train_batch_size"] = config.kl_batch_size // distributed.world_size()
    arguments["gradient_accumulation_steps"] = config.global_batch_size // config.kl_batch_size
    trainer = QuietKTOTrainer(
        model=model,
        ref_model=divided_reference(base_path, context.model),
        args=KTOConfig(**arguments, beta=config.beta, train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(with_mismatched(rows, config.kl_batch_size)),
        processing_class=tokenizer,
        peft_config=lora_config(context.model, model),
        callbacks=[reporter],
    )
    metrics = train(trainer, reporter, context.meter)
    save_checkpoint(trainer, base_path, context.model, context.out)
    return {**counts, **metrics}, reporter.history
