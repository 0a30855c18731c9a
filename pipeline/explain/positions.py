"""KL between the last model and the first one, at each position of the last one's replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from pipeline.core.errors import NotMeasuredError
from pipeline.core.log import say
from pipeline.engines.base import Weights
from pipeline.evals.answering import asked_turns
from pipeline.evals.results import Estimate
from pipeline.evals.statistics import bootstrap, resampled
from pipeline.explain.base import Findings, Material
from pipeline.explain.compliance import direct_replies
from pipeline.records import Pool, Verdict

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.engines.next_tokens import Reply

EARLY = 5
ASKED: tuple[Pool, ...] = ("red_team", "look_alike", "ordinary")


class PoolKL(BaseModel):
    """KL(last ‖ first) in nats over the replies to the requests of one pool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Pool
    num_left_out: int
    """Replies that do not fit the context, or whose logits are no numbers."""
    kl: list[Estimate]
    """At each position, from the first; the mean over the replies that reach it, which ``total`` counts."""
    early: Estimate
    """Share of the KL of all these positions that lies in the first ``EARLY`` ones."""
    even: float
    """What this share would be if the KL was the same at all positions."""
    per_reply: Estimate
    """The KL of all these positions together."""


class PositionFindings(Findings):
    """KL by position, for each pool with replies; the harmful requests come first."""

    pools: list[PoolKL]


def kl_by_position(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(π ‖ π_ref) of the next-token distributions at each position, Σ_v π_v (log π_v − log π_ref,v), in nats (Qi et
    al. 2024, arXiv 2406.05946, section 2).

    Args:
        logits, reference: (positions, vocabulary).

    Returns:
        (positions,)
    """
    logs, of_reference = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return (logs.exp() * (logs - of_reference)).sum(-1).clamp(min=0)  # below 0 by rounding alone


def position_findings(material: Material, num_requests: int, num_positions: int) -> PositionFindings:
    """Read both models' distributions at the tokens of the replies of the last model that are on record.

    Qi et al. read them at the tokens of harmful answers. Here they are the model's own replies, so that, for replies
    sampled at temperature 1, the sum over positions is an estimate of the KL between both models' replies.

    Raises:
        NotMeasuredError: there are no replies, or a model's logits can't be read.
    """
    replies = [reply for pool in ASKED for reply in direct_replies(material, material.last, pool)[:num_requests]]
    if not replies:
        raise NotMeasuredError(f"no reply of {material.last} to a request without an attack is on record")
    most = material.context.suites.max_reply_tokens
    say(f"depth: next-token distributions of {material.last} and {material.first} for {len(replies)} replies")
    found = _kl(material.weights(material.last), material.weights(material.first), replies, num_positions, most)
    pools = []
    for pool in ASKED:
        mine = [kl for reply, kl in zip(replies, found, strict=True) if reply.case.prompt.pool == pool]
        usable = [kl for kl in mine if len(kl)]
        if usable:
            pools.append(pool_kl(pool, usable, len(mine) - len(usable), material.confidence))
    if not pools:
        raise NotMeasuredError("no reply fits the context and has logits that are numbers")
    return PositionFindings(pools=pools)


def pool_kl(pool: Pool, replies: Sequence[NDArray[np.float64]], num_left_out: int, confidence: float) -> PoolKL:
    """Means over replies, with bootstrap intervals over replies.

    Args:
        replies: for each reply the KL at its positions, from the first; none is empty.
    """
    longest = max(map(len, replies))
    by_position = [np.array([kl[place] for kl in replies if len(kl) > place]) for place in range(longest)]
    totals = np.array([kl.sum() for kl in replies])
    early = np.array([kl[:EARLY].sum() for kl in replies])
    share = Estimate(value=None, total=len(replies))
    if totals.any():
        share = resampled(bootstrap(early, totals, statistic=_ratio, confidence=confidence), len(replies))
    lengths = [len(kl) for kl in replies]
    return PoolKL(
        pool=pool,
        num_left_out=num_left_out,
        kl=[_mean(values, confidence) for values in by_position],
        early=share,
        even=sum(min(length, EARLY) for length in lengths) / sum(lengths),
        per_reply=_mean(totals, confidence),
    )


def _mean(values: NDArray[np.float64], confidence: float) -> Estimate:
    return resampled(bootstrap(values, confidence=confidence), len(values))


def _ratio(part: NDArray, whole: NDArray) -> NDArray:
    """Ratio of the sums; 0 where a resample has no KL at all."""
    parts, wholes = part.sum(-1), whole.sum(-1)
    return np.asarray(np.divide(parts, wholes, out=np.zeros_like(parts), where=wholes > 0))


def _kl(
    model: Weights, reference: Weights, replies: Sequence[Verdict], num_positions: int, max_reply_tokens: int
) -> list[NDArray[np.float64]]:
    """The KL at the positions of each reply; empty if it can't be read.

    The logits of ``model`` are kept until they are compared, so that only one model is in memory.
    """
    from pipeline.engines.next_tokens import reply_logits
    from pipeline.engines.states import loaded

    found = [np.zeros(0)] * len(replies)
    with loaded(model) as (policy, tokenizer):
        rows = _rows(policy, tokenizer, replies, num_positions, max_reply_tokens)
        fitting = [place for place, row in enumerate(rows) if row is not None]
        asked = [row for row in rows if row is not None]
        kept = {place: logits.cpu() for place, logits in reply_logits(policy, asked)}
        del policy
    with loaded(reference) as (policy, tokenizer):
        if _rows(policy, tokenizer, replies, num_positions, max_reply_tokens) != rows:
            raise NotMeasuredError(f"{model.name} and {reference.name} read the same replies as different tokens")
        for place, logits in reply_logits(policy, asked):
            mine = kept.pop(place)
            if mine.shape != logits.shape:
                raise NotMeasuredError(f"{model.name} and {reference.name} have vocabularies of different sizes")
            kl = kl_by_position(mine, logits.cpu()).double().numpy()
            if np.isfinite(kl).all():
                found[fitting[place]] = kl
    return found


def _rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    replies: Sequence[Verdict],
    num_positions: int,
    max_reply_tokens: int,
) -> list[Reply | None]:
    """The first tokens of each reply with its prompt; None if there are none or they do not fit the context.

    The end of a turn is a token, too, where the model wrote it.
    """
    from pipeline.chat import Renderer
    from pipeline.engines.models import context_of
    from pipeline.engines.next_tokens import Reply

    chat = Renderer(tokenizer, model.generation_config.eos_token_id)
    rows: list[Reply | None] = []
    for verdict in replies:
        ended = verdict.num_tokens < max_reply_tokens
        reply = chat.reply_ids(verdict.reply) if ended else chat.text_ids(verdict.reply)
        row = Reply(chat.prompt_ids(asked_turns(verdict.case)), reply[:num_positions])
        fits = len(row.prompt) + len(row.reply) <= context_of(model.config)
        rows.append(row if row.reply and fits else None)
    return rows
