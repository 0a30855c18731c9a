"""Rollouts: replies sampled from the policy, with the log-probabilities and values of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence

from pipeline.core import distributed
from pipeline.core.stage import Context
from pipeline.engines.base import Request
from pipeline.engines.live import LiveEngine
from pipeline.engines.prefix import common_length, prefill, shares_prefixes
from pipeline.methods.policy_gradient.actors import Actors
from pipeline.methods.policy_gradient.config import RolloutConfig
from pipeline.methods.policy_gradient.mathematics import length_mask, reply_logprobs_and_entropy
from pipeline.records import Prompt

T = TypeVar("T")


@dataclass(kw_only=True)
class Rollout:
    """One reply with its score and tensors. Tensors are on the CPU, (reply tokens,) each."""

    index: int
    prompt: Prompt
    prompt_tokens: list[int]
    reply_tokens: list[int]
    ended: bool
    """False if the reply was cut off at its limit."""
    text: str
    score: float = 0.0
    """The weighted sum of the rewards, before penalties."""
    parts: dict[str, float] = field(default_factory=dict)
    unreadable: bool = False
    """No answer of the constitution's judge could be read, so its part is 0."""
    shaped_score: float = 0.0
    """The score for training: scaled, clipped and minus penalties."""
    is_trained_on: bool = True
    is_filler: bool = False
    """It counts for nothing; a rank without rows needs it to keep step with the others."""
    engine_logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """By the engine that sampled the reply; empty if it computes with the trainer's own model. Only for metrics."""
    logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """By the trainer, before the update: log π_old."""
    reference_logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    entropies: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    values: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def kl_nats(self) -> float:
        """log π/ρ of the whole reply (the k1 estimate of its KL)."""
        return float((self.logprobs - self.reference_logprobs).sum())


@dataclass(frozen=True, kw_only=True)
class RolloutTensors:
    """The input of advantage estimation: all rollouts of a step. Replies to one prompt are in neighbouring rows."""

    scores: torch.Tensor
    """(rows,), the shaped scores"""
    kl: torch.Tensor
    """(rows, tokens), from the method's estimator"""
    values: torch.Tensor
    """(rows, tokens), the value of the state before each token; zero without a value model"""
    lengths: torch.Tensor
    """(rows,), in tokens"""
    is_trained_on: torch.Tensor
    """(rows,), False if a reply is left out of the loss"""
    kl_coefficient: float

    @property
    def mask(self) -> torch.Tensor:
        """(rows, tokens), True for reply tokens, False for padding"""
        return length_mask(self.lengths, self.kl.shape[1])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows for a forward pass. Prompts are padded on the left and replies on the right, so all replies start in the
    same column. Masks are built from lengths, never from token values.

    The prefix that all prompts share (mostly a system prompt) is computed once, and gradients flow through it.
    """

    shared_ids: torch.Tensor
    """(1, shared tokens); there may be none"""
    input_ids: torch.Tensor
    """(rows, rest of the prompt + reply)"""
    attention_mask: torch.Tensor
    """(rows, shared + rest + reply)"""
    position_ids: torch.Tensor
    """the shape of ``input_ids``"""
    replies: torch.Tensor
    """(rows, reply tokens)"""
    mask: torch.Tensor
    """(rows, reply tokens), True for reply tokens, False for padding"""

    @property
    def width(self) -> int:
        return self.replies.shape[1]


def collate(rollouts: Sequence[Rollout], device: torch.device, share: bool = True) -> Batch:
    """Make a batch. Some models (``shares_prefixes``) and gradient checkpointing need ``share=False``."""
    num_shared = common_length([rollout.prompt_tokens for rollout in rollouts]) if share else 0
    prompts = [torch.tensor(rollout.prompt_tokens[num_shared:]) for rollout in rollouts]
    replies = [torch.tensor(rollout.reply_tokens) for rollout in rollouts]
    left = pad_sequence(prompts, batch_first=True, padding_side="left")
    right = pad_sequence(replies, batch_first=True)
    prompt_mask = length_mask(torch.tensor([len(prompt) for prompt in prompts])).flip(1)
    reply_mask = length_mask(torch.tensor([len(reply) for reply in replies]))
    rest_mask = torch.cat([prompt_mask, reply_mask], dim=1).long()
    return Batch(
        shared_ids=torch.tensor([rollouts[0].prompt_tokens[:num_shared]], dtype=torch.long).to(device),
        input_ids=torch.cat([left, right], dim=1).to(device),
        attention_mask=torch.cat([rest_mask.new_ones(len(prompts), num_shared), rest_mask], dim=1).to(device),
        position_ids=(num_shared + rest_mask.cumsum(dim=1) - 1).clamp(min=0).to(device),
        replies=right.to(device),
        mask=reply_mask.to(device),
    )


def padded(rows: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Stack rows of different lengths: (rows, tokens), padded with zeros on the right."""
    return pad_sequence(list(rows), batch_first=True).to(device)


# --- Forward passes ------------------------------------------------------------------------------------------------


def logprobs_and_entropy(model: Any, batch: Batch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log π and entropy at each reply token, (rows, reply tokens) each. Logits are computed only for replies."""
    logits = model(**_inputs(model.base_model, batch), logits_to_keep=batch.width + 1).logits[:, :-1]
    return reply_logprobs_and_entropy(logits, batch.replies, temperature)


def state_values(trunk: Any, head: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The value of the state before each reply token: (rows, reply tokens)."""
    hidden = trunk(**_inputs(trunk, batch)).last_hidden_state[:, -batch.width - 1 : -1]
    with torch.autocast(hidden.device.type, enabled=False):  # the head is always in fp32
        values: torch.Tensor = head(hidden.float())[..., 0]
    return values


def _inputs(trunk: Any, batch: Batch) -> dict[str, Any]:
    """Arguments of a forward pass. The shared prefix is prefilled here into a key-value cache."""
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }
    if batch.shared_ids.shape[1]:
        inputs |= {"past_key_values": prefill(trunk, batch.shared_ids, len(batch.input_ids)), "use_cache": True}
    return inputs


# --- Sampling ------------------------------------------------------------------------------------------------------


def draw(
    engine: LiveEngine, prompts: Sequence[Prompt], seeds: Sequence[int], config: RolloutConfig, context: Context
) -> list[Rollout]:
    """Sample one reply per prompt; returns this rank's share. A reply depends only on its prompt and its seed.

    The meter counts the replies of all ranks. Call on every rank.
    """
    share = slice(distributed.rank(), None, distributed.world_size())
    requests = [
        Request(
            id=f"{index:06d}",
            messages=prompt.messages,
            seed=seed,
            max_new_tokens=config.max_reply_tokens,
            temperature=config.temperature,
        )
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    asked = (requests if distributed.is_main() else []) if engine.asks_from_one_rank else requests[share]
    drawn = []
    with engine.sampler() as sampler:
        for batch in sampler.batches(asked):
            for request, sample in zip(batch, sampler.sample(batch), strict=True):
                assert sample is not None, "preflight refuses prompts that do not fit"
                index = int(request.id)
                kept = sample.reply[:-1] if sample.ended else sample.reply
                drawn.append(
                    Rollout(
                        index=index,
                        prompt=prompts[index],
                        prompt_tokens=sample.prompt,
                        reply_tokens=sample.reply,
                        ended=sample.ended,
                        text=sampler.text_of(kept),
                        engine_logprobs=torch.tensor(sample.logprobs or []),
                    )
                )
    drawn.sort(key=lambda rollout: rollout.index)
    if engine.asks_from_one_rank:
        drawn = gather(drawn)[share]
    context.meter.num_calls += len(prompts)
    context.meter.num_tokens_written += sum(gather([sum(len(rollout.reply_tokens) for rollout in drawn)]))
    return drawn


@torch.no_grad()
def measure(actors: Actors, rollouts: Sequence[Rollout], temperature: float, rows: int, with_values: bool) -> None:
    """Fill in log-probabilities of policy and reference, entropies and values, in batches of at most ``rows``."""
    for some in by_length(rollouts, rows):
        with actors.policy() as model:
            batch = collate(some, distributed.default_device(), share=shares_prefixes(model))
            logprobs, entropies = logprobs_and_entropy(model, batch, temperature)
        with actors.reference() as model:
            reference_logprobs, _ = logprobs_and_entropy(model, batch, temperature)
        values = torch.zeros_like(logprobs)
        if with_values and actors.value_head is not None:
            with actors.value_trunk() as trunk:
                values = state_values(trunk, actors.value_head, batch)
        for row, rollout in enumerate(some):
            length = len(rollout.reply_tokens)
            rollout.logprobs = logprobs[row, :length].float().cpu()
            rollout.reference_logprobs = reference_logprobs[row, :length].float().cpu()
            rollout.entropies = entropies[row, :length].float().cpu()
            rollout.values = values[row, :length].float().cpu()


def by_length(rollouts: Sequence[Rollout], rows: int) -> Iterator[list[Rollout]]:
    """Split into groups of at most ``rows`` rollouts of similar length, longest first, to reduce padding."""
    ordered = sorted(rollouts, key=lambda r: (-len(r.prompt_tokens) - len(r.reply_tokens), r.index))
    for start in range(0, len(ordered), rows):
        yield ordered[start : start + rows]


def gather(mine: list[T]) -> list[T]:
    """Return the lists of all ranks as one list, in the order of ranks, on every rank."""
    return list(gather_object(mine)) if distributed.world_size() > 1 else mine
