"""Compare the replies of every two models to the same requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from pipeline.core.counts import warn_of_many
from pipeline.evals.counted import Counted, Duel
from pipeline.evals.judges.base import PairJudge
from pipeline.evals.measures import by_model
from pipeline.evals.suites.base import SUITES
from pipeline.records import Case, Comparison, Verdict

Wins = dict[tuple[str, str], float]
"""(model, other) → number of wins of ``model`` over ``other``; a tie is half a win for each."""


def is_compared(case: Case) -> bool:
    """Whether a suite that counts the case has ``compares``."""
    return any(SUITES[name].compares and name in case.suites for name in SUITES)


def duel(
    verdicts: Sequence[Verdict], judge: PairJudge, counted: Counted | None = None
) -> tuple[list[Verdict], Wins, int]:
    """Compare all pairs of models. Warns if more than 5 % of the judge's answers can't be read.

    Args:
        counted: gets every comparison.

    Returns:
        The verdicts, the wins, and the number of comparisons without a readable answer. ``Verdict.preferred`` is 1 if
        the reply wins against the first model's reply, 0 if it loses, ½ for a tie, None if they were not compared.
    """
    compared = {(v.model, v.case.id): v for v in verdicts if is_compared(v.case) and v.outcome != "unjudged"}
    models = list(by_model(verdicts))
    pairs = {
        (later, earlier, case): _comparison(compared[later, case], theirs)
        for earlier, later in combinations(models, 2)
        for (model, case), theirs in compared.items()
        if model == earlier and (later, case) in compared
    }
    scores = judge.prefer(list(pairs.values())) if pairs else {}
    num_unreadable = sum(score is None for score in scores.values())
    what = f"comparisons by the judge {judge.who} can't be read, and no win counts them"
    warn_of_many(num_unreadable, len(scores), what, "use another judge (evaluate.pair_judge)")
    duels = [
        Duel(model=later, other=earlier, case=case, score=scores[pair.id])
        for (later, earlier, case), pair in pairs.items()
    ]
    if counted is not None:
        counted.duels += duels
    preferred = {(d.model, d.case): d.score for d in duels if d.other == models[0] and d.score is not None}
    # ½ for the first model itself, so that the paired tests can compare the others with it.
    preferred |= {(models[0], case): 0.5 for case in {case for _, case in preferred}}
    marked = [v.model_copy(update={"preferred": preferred.get((v.model, v.case.id))}) for v in verdicts]
    return marked, wins_of(duels), num_unreadable


def wins_of(duels: Iterable[Duel]) -> Wins:
    """The wins; comparisons that can't be read are left out."""
    wins: Wins = {}
    for duel in duels:
        if duel.score is not None:
            wins[duel.model, duel.other] = wins.get((duel.model, duel.other), 0.0) + duel.score
            wins[duel.other, duel.model] = wins.get((duel.other, duel.model), 0.0) + 1 - duel.score
    return wins


def _comparison(mine: Verdict, theirs: Verdict) -> Comparison:
    """The prompt is the conversation as the models saw it."""
    return Comparison(
        id=f"{mine.model}|{theirs.model}|{mine.case.id}",
        prompt=mine.case.prompt.model_copy(update={"messages": mine.case.messages}),
        reply_a=mine.reply,
        reply_b=theirs.reply,
        seed_a=mine.seed,
        seed_b=theirs.seed,
    )
