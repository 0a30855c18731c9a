"""``patterns``: the words of the replies alone (``refusal.py``). No model is asked."""

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
    """Declines, evades or complies, by its wording."""

    name, templates = "patterns", (refusal.NAME,)
    question = "does the reply decline or evade, by its wording?"
    who = refusal.NAME

    class Config(JudgeConfig):
        """The wording of the replies."""

        kind: Literal["patterns"] = "patterns"
        """The words of the replies alone."""

    def judge(self, items: Sequence[Item]) -> dict[str, Judged]:
        return {item.id: by_patterns(item) for item in items}


@PAIR_JUDGES.add
class PatternsPairJudge(PairJudge):
    """A reply that answers beats one that declines, and both beat a broken one; all else is a tie.

    It says nothing of quality: it measures what a request lost to refusals and collapse, and no more.
    """

    name, templates = "patterns", (refusal.NAME,)
    Config = PatternsJudge.Config
    question = "does one answer where the other declines or falls apart? (all else ties)"
    who = f"pairs:{refusal.NAME}"

    def prefer(self, comparisons: Sequence[Comparison]) -> Scores:
        return by_rank(comparisons, lambda reply, request: _RANK[refusal.judge_reply(reply, request)[0]])
