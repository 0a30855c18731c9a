"""Training on comparisons with soft labels, through TRL's DPO trainer with the loss of the chosen method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, load_from_disk
from peft import PeftModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from pipeline.chat import Renderer
from pipeline.core import distributed
from pipeline.core.stage import Context
from pipeline.records import Preference, derived_rng
from pipeline.training.batches import SortsByLength
from pipeline.training.logprobs import pair_logprobs
from pipeline.training.loop import InTokens, Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import divided_reference, load_policy, lora_config, save_checkpoint
from pipeline.training.recovery import recovery_rows
from pipeline.training.rows import cut_to_length

if TYPE_CHECKING:
    from pipeline.methods.pairs import PairMethod


@dataclass(frozen=True, kw_only=True)
class PairLogprobs:
    """Log-probabilities of both replies of each comparison under policy and reference. All tensors are (pairs,)."""

    policy_a: torch.Tensor
    """log p of reply A under the policy, summed over its tokens; with gradients."""
    policy_b: torch.Tensor
    reference_a: torch.Tensor
    """The same under the reference (the SFT model)."""
    reference_b: torch.Tensor
    num_tokens_a: torch.Tensor
    """The number of tokens in that sum, at least 1."""
    num_tokens_b: torch.Tensor
    opening_a: torch.Tensor
    """log p of the beginning of reply A under the policy: of as many tokens as the pair's opening has, or of all."""
    opening_b: torch.Tensor

    @property
    def ratio_a(self) -> torch.Tensor:
        """log π/π_ref of reply A."""
        return self.policy_a - self.reference_a

    @property
    def ratio_b(self) -> torch.Tensor:
        return self.policy_b - self.reference_b


@dataclass
class SoftLabelCollator(DataCollatorForPreference):
    """TRL's collator; the batch also has the soft labels, ``labels_a``."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["labels_a"] = torch.tensor([example["label_a"] for example in examples])
        batch["num_compared"] = torch.tensor([example["num_compared"] for example in examples])
        return batch


class PairTrainer(SortsByLength, InTokens, Quiet, DPOTrainer):
    """TRL's DPO trainer with soft labels. In TRL's column names "chosen" is reply A and "rejected" is reply B."""

    def __init__(self, *args: Any, method: PairMethod, config: Any, **kwargs: Any) -> None:
        self._method, self._method_config = method, config
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        assert not return_outputs, "this trainer returns no logits"
        labels_a, num_compared = inputs.pop("labels_a"), inputs.pop("num_compared")
        logprobs = self._token_logprobs(model, inputs)
        opening_a, opening_b = first_sums(logprobs, num_compared.repeat(2)).chunk(2)
        policy_a, policy_b = logprobs.sum(dim=1).chunk(2)
        if "ref_chosen_logps" not in inputs:
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = self.compute_ref_log_probs(model, inputs)
        num_tokens_a, num_tokens_b = inputs["completion_mask"][:, 1:].sum(dim=1).clamp(min=1).chunk(2)
        pairs = PairLogprobs(
            policy_a=policy_a,
            policy_b=policy_b,
            opening_a=opening_a,
            opening_b=opening_b,
            reference_a=inputs["ref_chosen_logps"],
            reference_b=inputs["ref_rejected_logps"],
            num_tokens_a=num_tokens_a,
            num_tokens_b=num_tokens_b,
        )
        self._note(pairs.ratio_a.detach(), pairs.ratio_b.detach(), labels_a)
        return self._method.loss(pairs, labels_a, self._method_config).mean()

    @staticmethod
    def _token_logprobs(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """log p of each token of each reply: (2 · pairs, reply tokens), all replies A first."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        return pair_logprobs(model, inputs["input_ids"], inputs["attention_mask"], labels)

    @torch.no_grad()
    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """log p of replies A and of replies B under the reference, (pairs,) each.

        The reference is ``ref_model`` if there is one, and otherwise the policy with its adapter off. TRL calls this
        before training, when the policy, too, is the reference.
        """
        policy = self.ref_model or self.accelerator.unwrap_model(model)
        adapter_off = policy.disable_adapter() if isinstance(policy, PeftModel) else nullcontext()
        on_device = {name: tensor.to(self.accelerator.device) for name, tensor in inputs.items()}
        with adapter_off, self.accelerator.autocast():
            reply_a, reply_b = self._token_logprobs(policy, on_device).sum(dim=1).chunk(2)
        return reply_a, reply_b

    def _note(self, ratio_a: torch.Tensor, ratio_b: torch.Tensor, labels_a: torch.Tensor) -> None:
        """Log the implicit rewards under TRL's names. Here "chosen" is the reply that the label prefers."""
        a_wins = labels_a >= 0.5
        chosen = self.beta * torch.where(a_wins, ratio_a, ratio_b)
        rejected = self.beta * torch.where(a_wins, ratio_b, ratio_a)
        gather = self.accelerator.gather_for_metrics
        mode = "train" if self.model.training else "eval"
        for name, values in (
            ("rewards/chosen", chosen),
            ("rewards/rejected", rejected),
            ("rewards/margins", chosen - rejected),
            ("rewards/accuracies", (chosen > rejected).float()),
        ):
            self._metrics[mode][name].append(gather(values).mean().item())


def first_sums(logprobs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The sum of the first ``numbers`` (rows,) log-probabilities of each row of (rows, tokens): (rows,)."""
    places = torch.arange(logprobs.shape[1], device=logprobs.device)
    return logprobs.masked_fill(places >= numbers[:, None], 0).sum(dim=1)


def trainable(preferences: Sequence[Preference], config: Any) -> list[dict[str, Any]]:
    """Return a row for each comparison with a usable label. Missing and too uncertain labels are left out."""
    rows = []
    for preference in preferences:
        label = preference.probability_a
        if label is None or abs(label - 0.5) < config.min_confidence:
            continue
        if getattr(config, "hard_labels", False):  # KTO leaves out ties and rounds the rest anyway
            if label == 0.5:
                continue  # a tie prefers neither
            label = float(label > 0.5)
        pair = preference.comparison
        rows.append(
            {
                "prompt": pair.prompt.messages,
                "reply_a": pair.reply_a,
                "reply_b": pair.reply_b,
                "begun_a": pair.begun_a,
                "begun_b": pair.begun_b,
                "opening": pair.opening,
                "label_a": label,
            }
        )
    return rows


def in_tokens(pair: dict[str, Any], chat: Renderer, most: int, num_reply_tokens: int | None = None) -> dict[str, Any]:
    """A row of ``trainable`` in tokens, with TRL's column names. ``num_compared``: how many tokens its opening has."""
    reply_a, reply_b = (_ids(chat, pair, side)[:num_reply_tokens] for side in ("a", "b"))
    return {
        "prompt_ids": chat.prompt_ids(pair["prompt"]),
        "chosen_ids": reply_a,
        "rejected_ids": reply_b,
        "label_a": pair["label_a"],
        "num_compared": len(chat.text_ids(pair["opening"])) if pair.get("opening") else most,
    }


def tokenised(
    pairs: Sequence[dict[str, Any]], chat: Renderer, most: int, num_reply_tokens: int | None = None
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Tokenise the rows of ``trainable``, with at most ``num_reply_tokens`` tokens per reply (None: all).

    Returns:
        rows of at most ``most`` tokens with TRL's column names ("chosen" is reply A), and how many were cut or left
        out (see ``cut_to_length``).

    Raises:
        ConfigError: every prompt has ``most`` or more tokens without its reply.
    """
    rows = [in_tokens(pair, chat, most, num_reply_tokens) for pair in pairs]
    return cut_to_length(rows, most, "align.max_length_tokens")


def _ids(chat: Renderer, pair: dict[str, Any], side: str) -> list[int]:
    """The tokens of a reply. Only a whole reply has an end of turn."""
    text = pair[f"reply_{side}"]
    return chat.text_ids(text) if pair.get(f"begun_{side}") else chat.reply_ids(text)


def _on_disk(rows: list[dict[str, Any]], folder: Path) -> Dataset:
    """Save the rows as a data set in a folder for all ranks. The main rank caches the reference's log p there."""
    if distributed.is_main():
        Dataset.from_list(rows).save_to_disk(folder)
    distributed.barrier()
    return load_from_disk(folder)


def train_pairs(
    rows: Sequence[dict[str, Any]], base_path: str, method: PairMethod, config: Any, context: Context
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Align the SFT model at ``base_path``, which is also the reference. Returns metrics and the log history.

    Raises:
        ConfigError: every prompt has ``align.max_length_tokens`` or more tokens without its reply.
    """
    model, tokenizer = load_policy(base_path, context.model)
    chat = Renderer(tokenizer, model.generation_config.eos_token_id)
    pairs, counts = tokenised(rows, chat, config.max_length_tokens, config.num_reply_tokens)
    begun = recovery_rows(pairs, chat, config, derived_rng(context.seed, "recovery rows"))
    reporter = Reporter(f"aligning ({config.method})", context.tracker)
    arguments = training_arguments(
        config,
        context.model,
        context.launch,
        context.seed,
        context.work,
        rows_on_cpu=4 if config.num_reply_tokens is None else 8,  # short rows need little padding
    )
    trainer = PairTrainer(
        model=model,
        ref_model=divided_reference(base_path, context.model),
        # Ranks divide the weights only when training starts, so the reference can't be computed before.
        args=DPOConfig(**arguments, beta=config.beta, precompute_ref_log_probs=distributed.sharding() == "none"),
        data_collator=SoftLabelCollator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=_on_disk(whole_batches(pairs + begun, config.global_batch_size), context.work / "pairs"),
        processing_class=tokenizer,
        peft_config=lora_config(context.model, model),
        callbacks=[reporter],
        method=method,
        config=config,
    )
    metrics = train(trainer, reporter, context.meter)
    save_checkpoint(trainer, base_path, context.model, context.out)
    return {**counts, "num_recovery_rows": len(begun), **metrics}, reporter.history
