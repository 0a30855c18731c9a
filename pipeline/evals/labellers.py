"""Scores of labellers and reward models on pairs that people decided, and rewards of the evaluated replies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.constitution.schema import Constitution
from pipeline.engines.base import Engine, ReplyQuery, Scored
from pipeline.engines.worklist import Logbook, Worklist
from pipeline.evals.judges.base import Scores
from pipeline.evals.results import DIRECT
from pipeline.labellers.base import LabellerConfig
from pipeline.labellers.label import label
from pipeline.records import Case, Comparison, Verdict

if TYPE_CHECKING:
    from pipeline.engines.reward_model import RewardModel

REWARDED_CASES = 40  # per pool; on two cores, a reward model of 135 M parameters scores about ten replies per second


def labeller_scores(
    config: LabellerConfig,
    constitution: Constitution,
    engine: Engine,
    pairs: Sequence[Comparison],
    seed: int,
    logbook: Logbook,
    purpose: str,
) -> Scores:
    """The choices of the run's labeller, which is asked as for training: pair id → 1 (A), 0 (B), ½ or None."""
    preferences = label(pairs, engine, config, constitution, seed, logbook, purpose)
    return {preference.comparison.id: _winner(preference.probability_a) for preference in preferences}


def _winner(probability: float | None) -> float | None:
    if probability is None:
        return None
    return 0.5 if probability == 0.5 else float(probability > 0.5)


def reward_scores(model: RewardModel, pairs: Sequence[Comparison], logbook: Logbook, log: str) -> Scores:
    """The choices of a reward model, by the higher score: pair id → 1 (A), 0 (B), ½, or None if a score is NaN."""
    asks = [
        ReplyQuery(id=f"{pair.id}/{side}", messages=pair.prompt.messages, reply=reply)
        for pair in pairs
        for side, reply in (("a", pair.reply_a), ("b", pair.reply_b))
    ]
    work = Worklist(logbook.log(log), Scored, logbook.meter)
    found = work.run("reward model on labelled pairs", model.batches(asks), model.score_batch)
    return {pair.id: _higher(found[f"{pair.id}/a"].score, found[f"{pair.id}/b"].score) for pair in pairs}


def reward_verdicts(
    model: RewardModel, cases: Sequence[Case], verdicts: Sequence[Verdict], logbook: Logbook, log: str
) -> list[Verdict]:
    """The verdicts, with the standardised rewards of the replies to ``rewarded_cases``; else ``reward`` is None."""
    chosen = rewarded_cases(cases)
    asks = {
        f"{v.model}|{v.case.id}": ReplyQuery(id=f"{v.model}|{v.case.id}", messages=v.case.messages, reply=v.reply)
        for v in verdicts
        if v.case.id in chosen and v.replied
    }
    found = Worklist(logbook.log(log), Scored, logbook.meter).run(
        "rewards of replies", model.batches(list(asks.values())), model.score_batch
    )
    rewards = {row_id: model.standardise(row.score) for row_id, row in found.items() if math.isfinite(row.score)}
    return [v.model_copy(update={"reward": rewards.get(f"{v.model}|{v.case.id}")}) for v in verdicts]


def rewarded_cases(cases: Sequence[Case], most: int = REWARDED_CASES) -> set[str]:
    """The ids of the first ``most`` cases of each pool, without attack or swapped group."""
    by_pool: dict[str, list[str]] = {}
    for case in cases:
        if case.attack == DIRECT and case.group is None:
            by_pool.setdefault(case.prompt.pool, []).append(case.id)
    return {case_id for ids in by_pool.values() for case_id in ids[:most]}


def _higher(a: float, b: float) -> float | None:
    if a != a or b != b:  # NaN
        return None
    return 0.5 if a == b else float(a > b)
