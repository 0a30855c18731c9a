"""Log-probabilities of replies, with gradients. Logits are computed only for reply tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)

from pipeline.core import distributed
from pipeline.engines.prefix import head_reads
from pipeline.engines.trees import MOST_TOKENS, reads_trees, trees


def reply_logprobs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """log p of each labelled token given the tokens before it.

    On a GPU, TRL's fused head computes it without storing logits. Without Triton, that head computes the logits of all
    positions twice. So on a CPU, logits are computed only where a label follows. And what several rows begin with (a
    system prompt, or the prompt of two replies) is computed once there; gradients flow through it.

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
    # Ranks that divide the weights must make the same number of forward passes.
    if distributed.sharding() == "none" and reads_trees(model):
        return _logprobs_in_trees(model, input_ids, attention_mask, labels)
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)  # the label after each position
    wanted = targets != -100
    with head_reads(model, wanted):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    taken = _logprobs(logits, targets[wanted])
    return taken.new_zeros(labels.shape).masked_scatter(wanted, taken)[:, :-1]


def _logprobs_in_trees(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The same as ``reply_logprobs``, from trees of the rows."""
    rows = [ids[: int(length)].tolist() for ids, length in zip(input_ids, attention_mask.sum(dim=1), strict=True)]
    one_pass = distributed.world_size() > 1  # data parallelism synchronises buffers in every forward pass
    order: list[int] = []
    found: list[torch.Tensor] = []
    for numbers, tree in trees(rows, None if one_pass else MOST_TOKENS):
        targets = labels[numbers, 1:]
        labelled = targets != -100
        read, which = tree.places(labels.shape[1])[:, :-1][labelled].unique(return_inverse=True)
        wanted = torch.zeros(1, len(tree.tokens), dtype=torch.bool).index_fill(1, read, True)
        with head_reads(model, wanted):
            logits = model(**tree.inputs(input_ids.device)).logits
        taken = _logprobs(logits[which], targets[labelled])
        found.append(taken.new_zeros(targets.shape).masked_scatter(labelled, taken))
        order += numbers
    return torch.cat(found)[torch.tensor(order).argsort()]


def _logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log p of targets (tokens,) under logits (tokens, vocabulary)."""
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def pair_logprobs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """log p of each reply of a pair.

    Args:
        model: as in ``reply_logprobs``.
        input_ids, attention_mask, labels: (2 · pairs, length), all replies A first, then all replies B. Padding is on
            the right, and the labels of a reply are contiguous.

    Returns:
        (2 · pairs, reply tokens), the first token of each reply in column 0; zero after its last token.
    """
    return _from_first_token(reply_logprobs(model, input_ids, attention_mask, labels), labels)


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
