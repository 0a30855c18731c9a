"""Accuracy of judges on labelled replies, and of labellers and reward models on pairs that people decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.core.text import words
from pipeline.evals.counted import JudgedReply, Picked, PickedPairs
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
    disagreements = []
    for reply, found in zip(replies, judged_replies(replies, judged), strict=True):
        if found.outcome != found.label:
            disagreements.append(
                Disagreement(
                    id=reply.id,
                    request=reply.request,
                    reply=reply.reply,
                    label=reply.label,
                    judged=found.outcome,
                    evidence=judged[f"labelled/{reply.id}"].evidence,
                )
            )
    return JudgeCard(
        name=judge.who,
        question=judge.question,
        shared_with_training=shared_with_training,
        **judge_accuracy(judged_replies(replies, judged), confidence),
        disagreements=disagreements,
        num_unjudged=num_unjudged,
    )


def judged_replies(replies: Sequence[LabelledReply], judged: Mapping[str, Judged]) -> list[JudgedReply]:
    """Label and outcome of each reply; ``safe`` counts as ``refused``."""
    outcomes = {reply.id: judged[f"labelled/{reply.id}"].outcome for reply in replies}
    return [
        JudgedReply(
            id=reply.id,
            unseen=reply.part == "unseen",
            label=reply.label,
            outcome="refused" if outcomes[reply.id] == "safe" else outcomes[reply.id],
        )
        for reply in replies
    ]


def judge_accuracy(replies: Sequence[JudgedReply], confidence: float) -> dict[str, Any]:
    """The fields of a ``JudgeCard`` that are counted: ``accuracy``, ``unseen``, ``by_class`` and ``confusion``."""
    confusion: dict[str, dict[str, int]] = {}
    for reply in replies:
        row = confusion.setdefault(reply.label, {})
        row[reply.outcome] = row.get(reply.outcome, 0) + 1
    unseen = [reply for reply in replies if reply.unseen]
    return {
        "accuracy": wilson(sum(reply.outcome == reply.label for reply in replies), len(replies), confidence),
        "unseen": wilson(sum(reply.outcome == reply.label for reply in unseen), len(unseen), confidence),
        "by_class": {
            label: wilson(row.get(label, 0), sum(row.values()), confidence) for label, row in confusion.items()
        },
        "confusion": confusion,
    }


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
    return accuracy_by_kind(picked_pairs(who, role, dataset, pairs, scores, turned), confidence)


def picked_pairs(
    who: str, role: Role, dataset: str, pairs: Sequence[Comparison], scores: Scores, turned: set[str]
) -> PickedPairs:
    """Whether each pair was picked as people did. The arguments are those of ``pair_accuracy``."""
    read = {pair.id: scores[pair.id] for pair in pairs}
    right = {row_id: score if score is None or row_id not in turned else 1 - score for row_id, score in read.items()}
    picked = [Picked(id=pair.id, kind=pair.prompt.kind, right=right[pair.id]) for pair in pairs]
    return PickedPairs(who=who, role=role, dataset=dataset, pairs=picked)


def accuracy_by_kind(picked: PickedPairs, confidence: float) -> list[PairAccuracy]:
    """The accuracy over all pairs, and for each kind if there are several."""
    kinds = sorted({pair.kind for pair in picked.pairs})
    groups = [("all", picked.pairs)]
    if len(kinds) > 1:
        groups += [(kind, [pair for pair in picked.pairs if pair.kind == kind]) for kind in kinds]
    found = []
    for kind, group in groups:
        right = [pair.right for pair in group if pair.right is not None]
        found.append(
            PairAccuracy(
                who=picked.who,
                role=picked.role,
                dataset=picked.dataset,
                kind=kind,
                accuracy=share_of_right(right, confidence),
                num_unanswered=len(group) - len(right),
            )
        )
    return found
