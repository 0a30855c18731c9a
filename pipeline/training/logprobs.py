"""Log-probabilities of replies, with gradients, computed where the replies are and nowhere else."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)


def reply_logprobs(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """log p of each labelled token given what stands before it.

    On a GPU TRL's fused head does this without ever holding the logits. Without Triton that head projects every
    position onto the vocabulary, twice; here only the columns from the first reply token on are projected.

    Args:
        model: a causal language model that TRL has given its fused head.
        input_ids, attention_mask, labels: (rows, length); labels are -100 outside the replies. Padding is on the right.

    Returns:
        (rows, length - 1) log-probabilities of tokens 1…; zero where the label is -100.
    """
    if input_ids.is_cuda:
        fused = model(
            input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False, fused_lm_head=True
        )
        return fused.log_probs
    length = labels.shape[1]
    labelled = (labels[:, 1:] != -100).any(dim=0).nonzero()
    start = int(labelled[0, 0]) if len(labelled) else length - 2  # the position that predicts the first reply token
    logits = model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=length - start
    ).logits[:, :-1]
    taken = -F.cross_entropy(
        logits.float().transpose(1, 2), labels[:, start + 1 :], ignore_index=-100, reduction="none"
    )
    return F.pad(taken, (start, 0))
