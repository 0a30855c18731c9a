"""Log-probabilities of replies, with gradients. Logits are computed only for reply tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from pipeline.core import distributed
from pipeline.engines.prefix import cache_of, common_length, head_reads, prefill, shares_prefixes


def shares(model: Any) -> bool:
    """Whether rows may share a prefix. Gradient checkpointing does not work with a key-value cache, and ranks that
    divide the weights must make the same number of forward passes."""
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return not checkpointing and distributed.sharding() == "none" and shares_prefixes(model)


def reply_logprobs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """log p of each labelled token given the tokens before it.

    On a GPU, TRL's fused head computes it without storing logits. Without Triton, that head computes the logits of all
    positions twice. So on a CPU, logits are computed only from the first reply token on, and the prefix that all rows
    share (mostly a system prompt) is computed once, and gradients flow through it.

    Args:
        model: a causal language model with TRL's fused head.
        input_ids, attention_mask, labels: (rows, length); labels are -100 outside the replies. Padding is on the right.

    Returns:
        (rows, length - 1) log-probabilities of tokens 1…; zero where the label is -100.
    """
    if input_ids.is_cuda:
        fused = model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False, fused_lm_head=True
        )
        return fused.log_probs
    predicted = F.pad(labels[:, 1:], (0, 1), value=-100)  # the label after each position
    labelled = predicted != -100
    start = int(labelled.any(dim=0).long().argmax())  # the position that predicts the first reply token
    num_shared = common_length(input_ids[:, : start + 1].tolist()) if shares(model) else 0
    inputs = {"input_ids": input_ids[:, num_shared:], "attention_mask": attention_mask, "use_cache": num_shared > 0}
    if num_shared:
        inputs["past_key_values"] = prefill(model, input_ids[:1, :num_shared], len(input_ids))
    taken = _logprobs_at(model, predicted[:, num_shared:], **inputs)
    return taken.new_zeros(labels.shape).masked_scatter(labelled, taken)[:, :-1]


def _logprobs_at(model: Any, targets: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """log p of the targets that are not -100, one after the other.

    Args:
        targets: (rows, positions), the next token of each position of the forward pass.
        inputs: arguments of the forward pass.
    """
    wanted = targets != -100
    with head_reads(model, wanted):
        logits = model(**inputs).logits
    return -F.cross_entropy(logits.float(), targets[wanted], reduction="none")


def pair_logprobs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """log p of each reply of a pair. A pair's prompt is computed once for both replies; gradients flow through it.

    Args:
        model: as in ``reply_logprobs``.
        input_ids, attention_mask, labels: (2 · pairs, length), all replies A first, then all replies B. Padding is on
            the right, and the labels of a reply are contiguous.

    Returns:
        (2 · pairs, reply tokens), the first token of each reply in column 0; zero after its last token.
    """
    num_pairs, length = len(input_ids) // 2, input_ids.shape[1]
    columns = torch.arange(length, device=input_ids.device)
    starts = torch.where(labels != -100, columns, length).amin(dim=1).view(2, num_pairs).amin(dim=0)
    known = starts - 1  # the prompt's last token predicts the first reply token, so it is computed with each reply
    if input_ids.is_cuda or not shares(model) or int(known.min()) < 1:
        return _from_first_token(reply_logprobs(model, input_ids, attention_mask, labels), labels)
    width = int(known.max())
    prompts, prompt_mask = input_ids[:num_pairs, :width], columns[:width] < known[:, None]
    num_shared = common_length(prompts[:, : int(known.min())].tolist())
    cache = None
    if num_shared:
        cache = prefill(model, prompts[:1, :num_shared], num_pairs)
    cache = cache_of(model, prompts[:, num_shared:], attention_mask=prompt_mask.long(), past_key_values=cache)
    cache.batch_repeat_interleave(2)

    side_by_side = torch.arange(2 * num_pairs, device=input_ids.device).view(2, num_pairs).T.flatten()  # A, B, A, B, …
    ids, mask, labels = (tensor[side_by_side] for tensor in (input_ids, attention_mask, labels))
    first, ends = known.repeat_interleave(2), mask.sum(dim=1)
    places = first[:, None] + columns[: int((ends - first).max()) - 1]  # (rows, reply tokens)
    targets = F.pad(labels, (0, 1), value=-100).gather(1, (places + 1).clamp(max=length))
    taken = _logprobs_at(
        model,
        targets,
        input_ids=ids.gather(1, places.clamp(max=length - 1)),
        attention_mask=torch.cat([prompt_mask.repeat_interleave(2, dim=0), places < ends[:, None]], dim=1).long(),
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    )
    found = _from_first_token(
        taken.new_zeros(targets.shape).masked_scatter(targets != -100, taken), F.pad(targets, (1, 0), value=-100)
    )
    return torch.cat([found[0::2], found[1::2]])


def _from_first_token(logprobs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Move the log-probabilities of each reply to the left, so that its first token is in column 0.

    Args:
        logprobs: (rows, length - 1) of tokens 1…; zero where the label is -100.
        labels: (rows, length); the labels of a reply are contiguous.

    Returns:
        (rows, tokens of the longest reply).
    """
    labelled = labels[:, 1:] != -100
    first, longest = labelled.long().argmax(dim=1), int(labelled.sum(dim=1).max())
    places = first[:, None] + torch.arange(longest, device=labels.device)
    return F.pad(logprobs, (0, longest)).gather(1, places)
