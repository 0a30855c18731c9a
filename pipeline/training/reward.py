"""Training of a reward model on soft labels, through TRL's trainer with another loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference, suppress_seqcls_warning

from pipeline.chat import Renderer
from pipeline.core import distributed
from pipeline.core.counts import warn_of_many
from pipeline.core.stage import Context
from pipeline.engines.models import ModelConfig, load_tokenizer, resolve_path, resolve_precision
from pipeline.engines.reward_model import pad_token, write_num_reply_tokens
from pipeline.records import Preference
from pipeline.training.attention import attend_in_products
from pipeline.training.batches import SortsByLength
from pipeline.training.config import TrainConfig
from pipeline.training.loop import Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import (
    keep_trainable,
    loading_device,
    lora_config,
    quantisation,
    revision_of,
    save_checkpoint,
    trained_weights,
    training_precision,
)


def soft_bradley_terry_loss(margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of σ(margin) and a soft label: −p·log σ(m) − (1−p)·log σ(−m).

    σ(r_A − r_B) is the probability that A is preferred (Bradley & Terry 1952). Constitutional AI uses soft labels (Bai
    et al. 2022, arXiv 2212.08073, section 4.1). A label of 1 gives the usual −log σ(r_chosen − r_rejected).

    Args:
        margins: (pairs,), reward of reply A minus that of reply B.
        labels: (pairs,), probability that A is the better reply.

    Returns:
        (pairs,) losses.
    """
    return -labels * F.logsigmoid(margins) - (1 - labels) * F.logsigmoid(-margins)


def centring_loss(rewards_a: torch.Tensor, rewards_b: torch.Tensor) -> torch.Tensor:
    """(r_A + r_B)², which keeps the mean reward near zero: the Bradley-Terry loss does not depend on it (Eisenstein et
    al. 2023, arXiv 2312.09244, equation 2). All tensors are (pairs,)."""
    return (rewards_a + rewards_b) ** 2


@dataclass
class SoftRewardCollator(DataCollatorForPreference):
    """TRL's collator; the batch also has the soft labels, ``labels_a``."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["labels_a"] = torch.tensor([example["label_a"] for example in examples])
        return batch


class SoftRewardTrainer(SortsByLength, Quiet, RewardTrainer):
    """TRL's reward trainer with soft labels. In TRL's column names "chosen" is reply A and "rejected" is reply B."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        assert not return_outputs, "this trainer returns no logits"
        labels_a = inputs.pop("labels_a")
        rewards_a, rewards_b = model(**inputs, use_cache=False).logits[:, 0].float().chunk(2)
        losses = soft_bradley_terry_loss(rewards_a - rewards_b, labels_a)
        losses = losses + self.args.center_rewards_coefficient * centring_loss(rewards_a, rewards_b)
        self._note(rewards_a.detach(), rewards_b.detach(), labels_a)
        return losses.mean()

    def _note(self, rewards_a: torch.Tensor, rewards_b: torch.Tensor, labels_a: torch.Tensor) -> None:
        """Log metrics under DPO's names. Margins and accuracies are of the reply that the label prefers."""
        margins = torch.where(labels_a >= 0.5, rewards_a - rewards_b, rewards_b - rewards_a)
        for name, values in (
            ("rewards/mean", (rewards_a + rewards_b) / 2),
            ("rewards/margins", margins),
            ("rewards/accuracies", (margins > 0).float()),
        ):
            self._metrics["train"][name].append(self.accelerator.gather_for_metrics(values).mean().item())


def reward_tokenizer(path: str, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, and set a pad token that no text ends with.

    Raises:
        ConfigError: the tokenizer has no such token.
    """
    tokenizer = load_tokenizer(path, revision_of(path, config))
    tokenizer.pad_token = pad_token(tokenizer)
    return tokenizer


def load_reward_base(path: str, config: ModelConfig, quantised: bool) -> PreTrainedModel:
    """Load the weights to train from, with a zero head, so that every pair starts at a probability of one half.

    The head is in fp32: it is small, and its updates would be rounded away in bf16.
    """
    with suppress_seqcls_warning():
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            revision=revision_of(path, config),
            num_labels=1,
            dtype=resolve_precision(training_precision(config)),
            **(quantisation(config) if quantised else {}),
        )
    keep_trainable(model)
    attend_in_products(model)
    model.score.float()
    torch.nn.init.zeros_(model.score.weight)
    return model if quantised else model.to(loading_device())


def num_compared_tokens(preferences: Sequence[Preference], chat: Renderer) -> int | None:
    """How many first tokens of both replies are compared: as many as the longest opening has. None if pairs are of
    whole replies."""
    openings = {preference.comparison.opening for preference in preferences}
    return None if "" in openings else max(len(chat.text_ids(opening)) for opening in openings)


def tokenised(
    preferences: Sequence[Preference], chat: Renderer, most: int, num_reply_tokens: int | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Return TRL's rows, and the number of texts with more than ``most`` tokens; their beginnings are cut off.

    TRL would drop such pairs. Texts are also tokenised here to match those of scoring.
    """
    rows, num_cut = [], 0
    for preference in preferences:
        pair = preference.comparison
        texts = [
            chat.dialogue_ids(pair.prompt.messages, reply, most + 1, num_reply_tokens)
            for reply in (pair.reply_a, pair.reply_b)
        ]
        num_cut += sum(len(text) > most for text in texts)
        chosen, rejected = (text[-most:] for text in texts)
        rows.append({"chosen_ids": chosen, "rejected_ids": rejected, "label_a": preference.probability_a})
    return rows, num_cut


def train_reward(
    preferences: Sequence[Preference], base_path: str, config: TrainConfig, center_coefficient: float, context: Context
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train on labelled pairs, starting from the model at ``base_path``. Returns metrics and the log history."""
    path = resolve_path(base_path)
    tokenizer = reward_tokenizer(path, context.model)
    model = load_reward_base(path, context.model, quantised=context.model.tuning == "qlora")
    chat = Renderer(tokenizer)
    num_reply_tokens = num_compared_tokens(preferences, chat)
    rows, num_cut = tokenised(preferences, chat, config.max_length_tokens, num_reply_tokens)
    longer = f"texts are longer than reward.max_length_tokens={config.max_length_tokens}; their beginnings are cut off"
    warn_of_many(num_cut, 2 * len(rows), longer, "raise reward.max_length_tokens")
    reporter = Reporter("training the reward model", context.tracker)
    arguments = training_arguments(config, context.model, context.launch, context.seed, context.work)
    trainer = SoftRewardTrainer(
        model=model,
        args=TrlRewardConfig(**arguments, center_rewards_coefficient=center_coefficient),
        data_collator=SoftRewardCollator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(whole_batches(rows, config.global_batch_size)),
        processing_class=tokenizer,
        # With SEQ_CLS, PEFT also trains the head, and saves it with the adapter.
        peft_config=lora_config(context.model, model, "SEQ_CLS"),
        callbacks=[reporter],
    )
    metrics = train(trainer, reporter, context.meter)
    save_reward_model(trainer, path, context.model, context.out)
    if num_reply_tokens is not None:
        if distributed.is_main():
            write_num_reply_tokens(context.out / "model", num_reply_tokens)
        distributed.barrier()
        metrics["num_reply_tokens"] = num_reply_tokens
    return {"num_texts_cut": num_cut, **metrics}, reporter.history


def save_reward_model(trainer: SoftRewardTrainer, path: str, config: ModelConfig, out: Path) -> None:
    """Write ``out/model`` (merged), and ``out/adapter`` with the head if an adapter was trained. Call on every rank."""
    if config.tuning == "full":
        save_checkpoint(trainer, path, config, out)
        return
    weights = trained_weights(trainer)
    if distributed.is_main():
        model = trainer.accelerator.unwrap_model(trainer.model)
        # With an adapter on them, peft would add the embeddings, which are in the model to which the adapter belongs.
        model.save_pretrained(out / "adapter", state_dict=weights, save_embedding_layers=False)
        # In 4-bit weights the merged adapter would be rounded away, and a rank that divides weights has only its part.
        if config.tuning == "qlora" or weights is not None:
            whole = load_reward_base(path, config, quantised=False)
            whole.config.pad_token_id = trainer.processing_class.pad_token_id
            model = peft.PeftModel.from_pretrained(whole, str(out / "adapter"))
        model.merge_and_unload().save_pretrained(out / "model")
        trainer.processing_class.save_pretrained(out / "model")
    distributed.barrier()
