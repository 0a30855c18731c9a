"""Rollouts: replies drawn from the policy, and what the models say of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence

from pipeline.core import distributed
from pipeline.core.stage import Context
from pipeline.engines.base import ENGINES, Request
from pipeline.methods.policy_gradient.actors import Actors
from pipeline.methods.policy_gradient.config import RolloutConfig
from pipeline.methods.policy_gradient.mathematics import length_mask, reply_logprobs_and_entropy
from pipeline.records import Prompt

T = TypeVar("T")
MIN_SHARED_TOKENS = 8


@dataclass(kw_only=True)
class Rollout:
    """One reply and what is known of it; the tensors are on the CPU, of shape (reply tokens,)."""

    index: int
    prompt: Prompt
    prompt_tokens: list[int]
    reply_tokens: list[int]
    ended: bool
    """False where the reply was cut off at its limit."""
    text: str
    score: float = 0.0
    """What the rewards give, before any penalty."""
    parts: dict[str, float] = field(default_factory=dict)
    shaped_score: float = 0.0
    """The score as the policy is trained on it."""
    is_trained_on: bool = True
    logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    reference_logprobs: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    entropies: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    values: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def kl_nats(self) -> float:
        """log π/ρ of the whole reply."""
        return float((self.logprobs - self.reference_logprobs).sum())


@dataclass(frozen=True, kw_only=True)
class RolloutTensors:
    """What advantages are estimated from: all rollouts of a step, those to one prompt in neighbouring rows."""

    scores: torch.Tensor
    """(rows,), shaped"""
    kl: torch.Tensor
    """(rows, tokens), by the method's estimator"""
    values: torch.Tensor
    """(rows, tokens), of the state before each token; zero without a value model"""
    lengths: torch.Tensor
    """(rows,), in tokens"""
    is_trained_on: torch.Tensor
    """(rows,), False where a reply is left out of the loss"""
    kl_coefficient: float

    @property
    def mask(self) -> torch.Tensor:
        """(rows, tokens), True on a reply's own tokens"""
        return length_mask(self.lengths, self.kl.shape[1])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as the models read them: prompts padded on the left, replies on the right, so that all replies begin at
    one column. Masks follow from lengths; no token's value says whether it counts.

    What all prompts begin with (a system prompt, mostly) is read once for all rows, gradients included.
    """

    shared_ids: torch.Tensor
    """(1, shared tokens), perhaps none"""
    input_ids: torch.Tensor
    """(rows, rest of the prompt + reply)"""
    attention_mask: torch.Tensor
    """(rows, shared + rest + reply)"""
    position_ids: torch.Tensor
    """as ``input_ids``"""
    replies: torch.Tensor
    """(rows, reply tokens)"""
    mask: torch.Tensor
    """(rows, reply tokens), True on a reply's own tokens"""

    @property
    def width(self) -> int:
        return self.replies.shape[1]


def collate(rollouts: Sequence[Rollout], device: torch.device, share: bool = True) -> Batch:
    """Lay out some rollouts. Without ``share`` every row is read whole, as recomputing activations needs it."""
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


def common_length(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with, short of the last of each; 0 where sharing them would save nothing."""
    most = min(map(len, rows)) - 1
    first, last = min(rows), max(rows)
    length = next((place for place in range(most) if first[place] != last[place]), most)
    return length if len(rows) > 1 and length >= MIN_SHARED_TOKENS else 0


def padded(rows: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """(rows, tokens), zero after the end of each."""
    return pad_sequence(list(rows), batch_first=True).to(device)


# --- What the models say -------------------------------------------------------------------------------------------


def logprobs_and_entropy(model: Any, batch: Batch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log π of each reply token, and the entropy there: (rows, reply tokens) each. Only replies are projected."""
    logits = model(**_inputs(model.base_model, batch), logits_to_keep=batch.width + 1).logits[:, :-1]
    return reply_logprobs_and_entropy(logits, batch.replies, temperature)


def state_values(trunk: Any, head: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """V of the state before each reply token: (rows, reply tokens)."""
    hidden = trunk(**_inputs(trunk, batch)).last_hidden_state[:, -batch.width - 1 : -1]
    with torch.autocast(hidden.device.type, enabled=False):  # the head is in fp32, whatever the trunk is in
        values: torch.Tensor = head(hidden.float())[..., 0]
    return values


def _inputs(trunk: Any, batch: Batch) -> dict[str, Any]:
    """What a forward pass takes; the shared beginning is read first, into the cache."""
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }
    if batch.shared_ids.shape[1]:
        cache = trunk(input_ids=batch.shared_ids, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(batch.input_ids))
        inputs |= {"past_key_values": cache, "use_cache": True}
    return inputs


# --- Drawing -------------------------------------------------------------------------------------------------------


def draw(
    actors: Actors, prompts: Sequence[Prompt], seeds: Sequence[int], config: RolloutConfig, context: Context
) -> list[Rollout]:
    """This rank's share of the replies, one to each prompt. A row's seed alone decides its draw.

    The meter counts the replies of all ranks.
    """
    requests = [
        Request(
            id=f"{index:06d}",
            messages=prompt.messages,
            seed=seed,
            max_new_tokens=config.max_reply_tokens,
            temperature=config.temperature,
        )
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ][distributed.rank() :: distributed.world_size()]
    drawn = []
    with actors.policy() as model:
        engine = ENGINES[context.policy_engine.kind].over(model, actors.tokenizer, context.launch)
        for batch in engine.batches(requests):
            for request, sample in zip(batch, engine.sample(batch), strict=True):
                assert sample is not None, "preflight lets no prompt through that does not fit"
                index = int(request.id)
                kept = sample.reply[:-1] if sample.ended else sample.reply
                drawn.append(
                    Rollout(
                        index=index,
                        prompt=prompts[index],
                        prompt_tokens=sample.prompt,
                        reply_tokens=sample.reply,
                        ended=sample.ended,
                        text=engine.text_of(kept),
                    )
                )
    context.meter.num_calls += len(prompts)
    context.meter.num_tokens_written += sum(gather([sum(len(rollout.reply_tokens) for rollout in drawn)]))
    return sorted(drawn, key=lambda rollout: rollout.index)


@torch.no_grad()
def measure(actors: Actors, rollouts: Sequence[Rollout], temperature: float, rows: int, with_values: bool) -> None:
    """Fill in what policy and reference, and the value model if there is one, say of every token."""
    for some in by_length(rollouts, rows):
        batch = collate(some, distributed.default_device())
        with actors.policy() as model:
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
    """Rows of like length together, the longest first, so that little is padding."""
    ordered = sorted(rollouts, key=lambda r: (-len(r.prompt_tokens) - len(r.reply_tokens), r.index))
    for start in range(0, len(ordered), rows):
        yield ordered[start : start + rows]


def gather(mine: list[T]) -> list[T]:
    """Every rank's rows on every rank, in the order of ranks."""
    return list(gather_object(mine)) if distributed.world_size() > 1 else mine
