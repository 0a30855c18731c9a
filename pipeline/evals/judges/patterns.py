"""``patterns``: judges by the wording of the replies (``refusal.py``), without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.evals.judges import refusal
from pipeline.evals.judges.base import (
    JUDGES,
    PAIR_JUDGES,
    Item,
    Judge,
    JudgeConfig,
    Judged,
    PairJudge,
    Scores,
    by_patterns,
    by_rank,
)
from pipeline.records import Comparison

_RANK = {"complied": 2, "refused": 1, "broken": 0}


@JUDGES.add
class PatternsJudge(Judge):
    """Decides by the wording whether a reply declines, evades or complies."""

    name, templates = "patterns", (refusal.NAME,)
    question = "does the reply decline or evade, by its wording?"
    who = refusal.NAME

    class Config(JudgeConfig):
        """Judges by the wording of the replies, without a model."""

        kind: Literal["patterns"] = "patterns"
        """The wording of the replies, without a model."""

    def judge(self, items: Sequence[Item]) -> dict[str, Judged]:
        return {item.id: by_patterns(item) for item in items}


@PAIR_JUDGES.add
class PatternsPairJudge(PairJudge):
    """An answer beats a refusal, and both beat a broken reply; everything else is a tie.

    It does not measure quality, only what is lost to refusals and broken replies.
    """

    name, templates = "patterns", (refusal.NAME,)
    Config = PatternsJudge.Config
    question = "does one reply answer while the other declines or is broken? (else a tie)"
    who = f"pairs:{refusal.NAME}"

    def prefer(self, comparisons: Sequence[Comparison]) -> Scores:
        return by_rank(comparisons, lambda reply, request: _RANK[refusal.judge_reply(reply, request)[0]])
