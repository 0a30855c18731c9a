"""Accuracy of judges on labelled replies, and of labellers and reward models on pairs that people decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.core.text import words
from pipeline.evals.judges import refusal
from pipeline.evals.judges.base import Item, Judge, Judged, Scores
from pipeline.evals.results import Disagreement, JudgeCard, PairAccuracy, Role
from pipeline.evals.statistics import share_of_right, wilson
from pipeline.evals.suites.base import DATA
from pipeline.records import Comparison, derive_seed

LABELLED = DATA / "suites" / "judged_replies.jsonl"


class LabelledReply(BaseModel):
    """A reply that was labelled by hand. The authors of the patterns had seen the ``seen`` ones only."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    part: Literal["seen", "unseen"]
    source: str
    case: str
    request: str
    reply: str
    label: Literal["refused", "complied", "broken"]


def labelled_replies(at_most: int | None = None, path: Path = LABELLED) -> list[LabelledReply]:
    """The labelled replies, or ``at_most`` of them, drawn by hash; a smaller draw is part of a larger one."""
    replies = [LabelledReply.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    drawn = {reply.id for reply in sorted(replies, key=lambda reply: derive_seed("labelled", reply.id))[:at_most]}
    return [reply for reply in replies if reply.id in drawn]


def as_items(replies: Sequence[LabelledReply]) -> list[Item]:
    # harmful=True, because a classifier of harm judges only replies to harmful requests.
    return [Item(id=f"labelled/{r.id}", request=r.request, reply=r.reply, harmful=True) for r in replies]


def judge_card(
    judge: Judge,
    replies: Sequence[LabelledReply],
    judged: dict[str, Judged],
    num_unjudged: int,
    shared_with_training: bool,
    confidence: float,
) -> JudgeCard:
    """Score a judge on labelled replies. ``safe`` counts as ``refused``, because the reply does no harm.

    Args:
        judged: by the ids of ``as_items``.
        num_unjudged: of the evaluated replies, not of these.
    """
    confusion: dict[str, dict[str, int]] = {}
    disagreements = []
    for reply in replies:
        found = judged[f"labelled/{reply.id}"]
        outcome = "refused" if found.outcome == "safe" else found.outcome
        row = confusion.setdefault(reply.label, {})
        row[outcome] = row.get(outcome, 0) + 1
        if outcome != reply.label:
            disagreements.append(
                Disagreement(
                    id=reply.id,
                    request=reply.request,
                    reply=reply.reply,
                    label=reply.label,
                    judged=outcome,
                    evidence=found.evidence,
                )
            )
    unseen = [reply for reply in replies if reply.part == "unseen"]
    wrong = {disagreement.id for disagreement in disagreements}
    return JudgeCard(
        name=judge.who,
        question=judge.question,
        shared_with_training=shared_with_training,
        accuracy=wilson(len(replies) - len(disagreements), len(replies), confidence),
        unseen=wilson(sum(reply.id not in wrong for reply in unseen), len(unseen), confidence),
        by_class={label: wilson(row.get(label, 0), sum(row.values()), confidence) for label, row in confusion.items()},
        confusion=confusion,
        disagreements=disagreements,
        num_unjudged=num_unjudged,
    )


BASELINES: Mapping[str, Callable[[str, str], int]] = {  # (reply, request) → rank; the higher rank wins
    "the longer one": lambda reply, request: len(words(reply)),
    "the refusing one": lambda reply, request: refusal.judge_reply(reply, request)[0] == "refused",
}


def shuffled(pairs: Sequence[Comparison]) -> tuple[list[Comparison], set[str]]:
    """The pairs, about half of them swapped by hash, so that "always A" scores ½; and the ids of the swapped ones."""
    turned = {pair.id for pair in pairs if derive_seed("turn", pair.id) % 2}
    return [pair.swap() if pair.id in turned else pair for pair in pairs], turned


def pair_accuracy(
    who: str,
    role: Role,
    dataset: str,
    pairs: Sequence[Comparison],
    scores: Scores,
    turned: set[str],
    confidence: float,
) -> list[PairAccuracy]:
    """Share of pairs for which ``scores`` pick the reply that people chose (ties ½), over all pairs and by kind.

    Args:
        pairs: before ``shuffled``: reply A is the one that people chose.
        scores: after ``shuffled``; ``turned`` has the ids of the swapped pairs.
    """
    kinds = sorted({pair.prompt.kind for pair in pairs})
    groups = [("all", list(pairs))]
    if len(kinds) > 1:
        groups += [(kind, [pair for pair in pairs if pair.prompt.kind == kind]) for kind in kinds]
    found = []
    for kind, group in groups:
        read = [(pair.id, scores[pair.id]) for pair in group]
        right = [1 - score if row_id in turned else score for row_id, score in read if score is not None]
        found.append(
            PairAccuracy(
                who=who,
                role=role,
                dataset=dataset,
                kind=kind,
                accuracy=share_of_right(right, confidence),
                num_unanswered=len(group) - len(right),
            )
        )
    return found
