"""Which training rows made a reply likelier: products of gradients (TracIn, Pruthi et al. 2020, arXiv 2002.08484).

A step of gradient descent on a row with loss ℓ moves the weights by −η∇ℓ. To first order it then moves the
log-probability of a reply by η · (−∇ℓ · ∇log p): the paper's equation 2 for one checkpoint, with log p in place of the
test loss. A positive product says that the row made the reply likelier.

The product grows with the length and the surprise of a row, and a row that was learnt by heart has a small gradient.
So rows are ranked by the cosine, as in LESS (Xia et al. 2024, arXiv 2402.04333).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from pipeline.core.errors import NotMeasuredError
from pipeline.engines.models import ModelConfig
from pipeline.engines.states import memory_errors
from pipeline.methods.base import AlignConfig
from pipeline.methods.pairs import PairMethod
from pipeline.records import Message, Preference, TrainingRow
from pipeline.training import pairs, sft
from pipeline.training.gradients import Adapted, Trained, token_logprobs
from pipeline.training.rows import cut_row


class Influence(BaseModel):
    """``product``: −∇ℓ · ∇log p. ``cosine``: of the two. Positive: the row made the reply likelier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product: float
    cosine: float


@dataclass(frozen=True)
class Said:
    """A prompt, and what was said."""

    messages: list[Message]
    begun: str
    """A given beginning of the reply, after which the model went on."""
    reply: str
    """What the model wrote after it."""
    ended: bool
    """The model ended it; otherwise it was cut at the limit of its tokens."""


def sft_influences(
    rows: Sequence[TrainingRow], said: Said, trained: Trained, model: ModelConfig, seed: int, most: int
) -> list[Influence | None]:
    """Of each row on a reply, at the SFT model. None: the row was too long to train on.

    ℓ is the row's share of the loss of a batch: −log p of its reply, summed over tokens.

    Args:
        most: ``sft.max_length_tokens``.
    """
    with memory_errors():
        adapted = Adapted(trained, model, seed)

    def values() -> Iterator[torch.Tensor | None]:
        for row in rows:
            cut = cut_row(sft.in_tokens(row, adapted.chat), most)
            if cut is None:
                yield None
            else:
                yield token_logprobs(adapted.model, cut["prompt_ids"], cut["completion_ids"]).sum()

    return _influences(adapted, values(), said)


def pair_influences(
    preferences: Sequence[Preference],
    said: Said,
    trained: Trained,
    model: ModelConfig,
    seed: int,
    method: PairMethod,
    config: AlignConfig,
) -> list[Influence | None]:
    """Of each comparison on a reply, at the aligned model. None: it was not trained on, or was too long.

    ℓ is the loss of the method. KTO's needs a batch; for it, −ℓ is log p of the better reply minus that of the other.
    """
    with memory_errors():
        adapted = Adapted(trained, model, seed)
        start = Adapted(Trained(trained.start, trained.start, None), model, seed) if trained.adapter is None else None
    most, num_reply_tokens = config.max_length_tokens, getattr(config, "num_reply_tokens", None)

    def values() -> Iterator[torch.Tensor | None]:
        for preference in preferences:
            rows = pairs.trainable([preference], config)
            cut = cut_row(pairs.in_tokens(rows[0], adapted.chat, most, num_reply_tokens), most) if rows else None
            if cut is None or cut["chosen_ids"] == cut["rejected_ids"]:
                yield None
            else:
                yield _pair_value(adapted, start, cut, method, config)

    return _influences(adapted, values(), said)


def _pair_value(
    adapted: Adapted, start: Adapted | None, row: dict[str, Any], method: PairMethod, config: AlignConfig
) -> torch.Tensor:
    """−ℓ of a comparison. ``start``: the reference, if it is not the model without its adapter."""
    replies = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids")]
    with torch.no_grad(), nullcontext() if start else adapted.without_adapter():
        reference_a, reference_b = (token_logprobs((start or adapted).model, *reply).sum() for reply in replies)
    a, b = (token_logprobs(adapted.model, *reply) for reply in replies)
    logprobs = pairs.PairLogprobs(
        policy_a=a.sum()[None],
        policy_b=b.sum()[None],
        reference_a=reference_a[None],
        reference_b=reference_b[None],
        num_tokens_a=torch.tensor([len(a)], device=a.device),
        num_tokens_b=torch.tensor([len(b)], device=b.device),
        opening_a=a[: row["num_compared"]].sum()[None],
        opening_b=b[: row["num_compared"]].sum()[None],
    )
    try:
        return -method.loss(logprobs, torch.tensor([row["label_a"]], device=a.device), config).sum()
    except NotImplementedError:
        return (a.sum() - b.sum()) * (1 if row["label_a"] >= 0.5 else -1)


def _influences(adapted: Adapted, values: Iterable[torch.Tensor | None], said: Said) -> list[Influence | None]:
    """Of each −ℓ on what was said. Only one graph is held at a time."""
    prompt_ids = adapted.chat.prompt_ids(said.messages, said.begun)
    reply_ids = adapted.chat.continued_ids(said.begun, said.reply) + (adapted.chat.end_ids if said.ended else [])
    if not reply_ids:
        raise NotMeasuredError("the reply is empty")
    with memory_errors():
        target = adapted.gradient(token_logprobs(adapted.model, prompt_ids, reply_ids).sum())
        return [None if value is None else compare(adapted.gradient(value), target) for value in values]


def compare(row: torch.Tensor, target: torch.Tensor) -> Influence:
    """The product and the cosine of two gradients, (weights,) each."""
    product, norms = float(row @ target), float(row.norm() * target.norm())
    return Influence(product=product, cosine=product / norms if norms else 0.0)
