"""A few steps of LoRA on a model in memory, to see how soon it forgets. Nothing is written to the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import peft
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from transformers import PreTrainedModel

from pipeline.core.errors import NotMeasuredError
from pipeline.engines.models import ModelConfig
from pipeline.engines.next_tokens import Reply, logits_of
from pipeline.training.models import lora_config

MAX_GRAD_NORM = 1.0


def few_steps(
    model: PreTrainedModel,
    rows: Sequence[Reply],
    stops: Sequence[int],
    config: ModelConfig,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[int, float, Any]]:
    """Train an adapter on the replies with AdamW, and stop after each of these numbers of steps.

    Dropout is off, and the rows are taken in their order, from the beginning again after the last one. At the end the
    adapter is taken off, and the model is as it was before.

    Args:
        stops: in ascending order; the first may be 0.
        config: its section ``lora`` gives the adapter.
        seed: of the adapter's first weights.

    Yields:
        (number of steps, nats per token of the first batch of replies, the model with the adapter as it is now).

    Raises:
        NotMeasuredError: the loss is not a number.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        adapted: Any = peft.get_peft_model(model, lora_config(config, model))
    adapted.eval()
    try:
        trained = [weight for weight in adapted.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
        num_done = 0
        for stop in stops:
            for step in range(num_done, stop):
                _step(adapted, _batch(rows, step, batch_size), optimiser, trained)
            num_done = stop
            with torch.no_grad():
                nats = float(_loss(adapted, _batch(rows, 0, batch_size)))
            yield stop, nats, adapted
    finally:
        adapted.unload()


def _batch(rows: Sequence[Reply], step: int, batch_size: int) -> list[Reply]:
    return [rows[place % len(rows)] for place in range(step * batch_size, (step + 1) * batch_size)]


def _loss(model: Any, rows: Sequence[Reply]) -> torch.Tensor:
    """Mean of −log p over the tokens of the replies."""
    logits = logits_of(model, rows)
    targets = torch.tensor([token for row in rows for token in row.reply], device=logits.device)
    return F.cross_entropy(logits.float(), targets)


def _step(model: Any, rows: Sequence[Reply], optimiser: torch.optim.Optimizer, trained: list[torch.Tensor]) -> None:
    loss = _loss(model, rows)
    if not torch.isfinite(loss):
        raise NotMeasuredError("the loss of the fine-tuning is not a number")
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
    optimiser.step()
