"""Direct preference optimisation on soft labels, through TRL's trainer with the loss replaced."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from datasets import Dataset, load_from_disk
from peft import PeftModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from pipeline.chat import Renderer
from pipeline.core import distributed
from pipeline.core.stage import Context
from pipeline.records import Preference
from pipeline.training.logprobs import pair_logprobs
from pipeline.training.loop import InTokens, Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import load_policy, lora_config, save_checkpoint
from pipeline.training.rows import cut_to_length


def soft_dpo_loss(margins: torch.Tensor, labels: torch.Tensor, beta: float) -> torch.Tensor:
    """Cross-entropy of σ(β·margin) against the soft label.

    Rafailov et al. 2023 (arXiv 2305.18290), equation 7, for a label that is a probability; a label of 1 gives theirs:
    BCE(p, σ(x)) = −p·log σ(x) − (1−p)·log σ(−x), with x = β·margin.

    Args:
        margins: (pairs,), log-ratio of policy to reference of reply A minus that of reply B.
        labels: (pairs,), probability that A is the better reply.

    Returns:
        (pairs,) losses.
    """
    logits = beta * margins
    return -labels * F.logsigmoid(logits) - (1 - labels) * F.logsigmoid(-logits)


def soft_ipo_loss(margins: torch.Tensor, labels: torch.Tensor, beta: float) -> torch.Tensor:
    """IPO (Azar et al. 2023, arXiv 2310.12036, equation 17) in expectation over a label that is a probability.

    p·(m − 1/2β)² + (1−p)·(m + 1/2β)². Margins are per token, so that β means the same for any length.
    Shapes as in ``soft_dpo_loss``.
    """
    target = 1 / (2 * beta)
    return labels * (margins - target) ** 2 + (1 - labels) * (margins + target) ** 2


@dataclass
class SoftLabelCollator(DataCollatorForPreference):
    """TRL's collator, with the soft labels beside the tokens."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["labels_a"] = torch.tensor([example["label_a"] for example in examples])
        return batch


class SoftDPOTrainer(InTokens, Quiet, DPOTrainer):
    """DPO or IPO whose label is a probability. "Chosen" is reply A and "rejected" reply B; the label says how far."""

    def __init__(self, *args: Any, method: str, **kwargs: Any) -> None:
        self._method = method
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        labels_a = inputs.pop("labels_a")
        reference_a, reference_b = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        policy_a, policy_b = self._reply_logprobs(model, inputs).chunk(2)
        ratio_a, ratio_b = policy_a - reference_a, policy_b - reference_b
        if self._method == "ipo":
            tokens_a, tokens_b = inputs["completion_mask"][:, 1:].sum(dim=1).clamp(min=1).chunk(2)
            losses = soft_ipo_loss(ratio_a / tokens_a - ratio_b / tokens_b, labels_a, self.beta)
        else:
            losses = soft_dpo_loss(ratio_a - ratio_b, labels_a, self.beta)
        self._note(ratio_a.detach(), ratio_b.detach(), labels_a)
        assert not return_outputs, "this trainer is never asked for logits"
        return losses.mean()

    @staticmethod
    def _reply_logprobs(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Summed over each reply's tokens: (2 · pairs,), all A's first."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        return pair_logprobs(model, inputs["input_ids"], inputs["attention_mask"], labels)

    @torch.no_grad()
    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same under the reference: the policy before its first step, adapter off.

        TRL asks once for each pair, before training and in the order of the data: a resumed run hears the same.
        """
        policy = self.accelerator.unwrap_model(model)
        adapter_off = policy.disable_adapter() if isinstance(policy, PeftModel) else nullcontext()
        on_device = {name: tensor.to(self.accelerator.device) for name, tensor in inputs.items()}
        with adapter_off, self.accelerator.autocast():
            reply_a, reply_b = self._reply_logprobs(policy, on_device).chunk(2)
        return reply_a, reply_b

    def _note(self, ratio_a: torch.Tensor, ratio_b: torch.Tensor, labels_a: torch.Tensor) -> None:
        """Implicit rewards in the field's names; "chosen" is the reply that the label prefers."""
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


def trainable(preferences: Sequence[Preference], config: Any) -> list[dict[str, Any]]:
    """Labelled pairs in TRL's names, where "chosen" is reply A; unparseable and too uncertain ones are left out."""
    rows = []
    for preference in preferences:
        label = preference.probability_a
        if label is None or abs(label - 0.5) < config.min_confidence:
            continue
        if config.hard_labels:
            if label == 0.5:
                continue  # a tie prefers neither
            label = float(label > 0.5)
        pair = preference.comparison
        rows.append(
            {
                "prompt": pair.prompt.messages,
                "chosen": pair.reply_a,
                "rejected": pair.reply_b,
                "label_a": label,
            }
        )
    return rows


def tokenised(
    pairs: Sequence[dict[str, Any]], chat: Renderer, most: int, num_reply_tokens: int | None = None
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What ``trainable`` gives, in tokens: the first ``num_reply_tokens`` of each reply (None: all).

    Returns:
        rows of at most ``most`` tokens, and how many were cut or left out (see ``cut_to_length``, which also raises).
    """
    rows = [
        {
            "prompt_ids": chat.prompt_ids(pair["prompt"]),
            "chosen_ids": chat.reply_ids(pair["chosen"])[:num_reply_tokens],
            "rejected_ids": chat.reply_ids(pair["rejected"])[:num_reply_tokens],
            "label_a": pair["label_a"],
        }
        for pair in pairs
    ]
    return cut_to_length(rows, most, "align.max_length_tokens")


def _on_disk(rows: list[dict[str, Any]], folder: Path) -> Dataset:
    """The rows as a data set in a folder that all ranks see: the first one leaves the reference's numbers there."""
    if distributed.is_main():
        Dataset.from_list(rows).save_to_disk(folder)
    distributed.barrier()
    return load_from_disk(folder)


def train_dpo(
    rows: Sequence[dict[str, Any]], base_path: str, config: Any, context: Context
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Align the SFT model at ``base_path``, which is also the reference. Returns metrics and the log history.

    Raises:
        ConfigError: every prompt fills ``align.max_length_tokens`` by itself.
    """
    model, tokenizer = load_policy(base_path, context.model)
    chat = Renderer(tokenizer, model.generation_config.eos_token_id)
    pairs, counts = tokenised(rows, chat, config.max_length_tokens, config.num_reply_tokens)
    reporter = Reporter(f"aligning ({config.method})", context.tracker)
    arguments = training_arguments(
        config,
        context.model,
        context.launch,
        context.seed,
        context.work,
        rows_on_cpu=4 if config.num_reply_tokens is None else 8,
    )
    trainer = SoftDPOTrainer(
        model=model,
        args=DPOConfig(**arguments, beta=config.beta, precompute_ref_log_probs=True),
        data_collator=SoftLabelCollator(pad_token_id=tokenizer.pad_token_id),
        train_dataset=_on_disk(whole_batches(pairs, config.global_batch_size), context.work / "pairs"),
        processing_class=tokenizer,
        peft_config=lora_config(context.model),
        callbacks=[reporter],
        method=config.method,
    )
    metrics = train(trainer, reporter, context.meter)
    save_checkpoint(trainer, base_path, context.model, context.out)
    return {**counts, **metrics}, reporter.history
