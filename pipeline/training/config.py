"""Settings of every training stage. The global batch size is set here; the hardware decides how it is divided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from pipeline.core.settings import RUNTIME, Settings
from pipeline.core.stage import Use
from pipeline.records import Message


class TrainConfig(Settings):
    """Optimiser, schedule and batch of one training stage."""

    num_epochs: float = Field(ge=0)
    """Passes over the training rows."""
    learning_rate: float = Field(ge=0, le=1)
    """AdamW's highest learning rate (after the warm-up)."""
    global_batch_size: int = Field(ge=1)
    """Rows per update, over all processes and gradient accumulation steps."""
    max_length_tokens: int = Field(ge=64)
    """Longer rows are cut to so many tokens."""
    warmup_fraction: float = Field(default=0.1, ge=0, le=0.99)
    """Share of the steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are clipped to this norm."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    save_every_steps: Annotated[int, RUNTIME] = Field(default=10, ge=1)
    """Steps between two checkpoints; a killed run repeats at most so many."""


def training_use(stage: str, dialogues: Sequence[Sequence[Message]], reply_tokens: int, config: TrainConfig) -> Use:
    """The rows that a stage trains on; ``reply_tokens``: the most tokens of a reply."""
    return Use(
        what=f"{stage}: rows to train on",
        dialogues=dialogues,
        reply_tokens=reply_tokens,
        most=config.max_length_tokens,
        field=f"{stage}.max_length_tokens",
        cuts_replies=True,
    )
