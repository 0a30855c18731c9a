"""Counts the results of an evaluation again, from its verdicts, with the project's own statistics.

Numbers that can't be counted again are named, with the reason. Of these, a rate that gives its count and total still
has its value and its interval computed again from the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evals.accuracy import accuracy_by_kind, judge_accuracy
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.counted import Counted
from pipeline.evals.duels import wins_of
from pipeline.evals.gate import Guidelines, overridden, rule
from pipeline.evals.knows_does import compare
from pipeline.evals.measures import all_measures, by_model
from pipeline.evals.results import Estimate, Gate, JudgeCard, KnowsDoes, PairAccuracy, Rating, Results
from pipeline.evals.statistics import wilson
from pipeline.evals.summary import summarise
from pipeline.records import Case, RedactedVerdict, Verdict

OLD = "the run was evaluated by a version that did not keep what they are counted from"
NOT_IN_REDACTED = ("distinct_bigrams",)  # counted over the words of all replies


@dataclass
class Recount:
    """``results``: as counted again; what can't be counted is as stated, and ``left_out`` says why."""

    results: Results
    left_out: list[str] = field(default_factory=list)


def recount(stated: Results, verdicts: Sequence[Verdict], counted: Counted | None, confidence: float) -> Recount:
    """Count again what ``stated`` says.

    Args:
        counted: None for a run that has no ``counted.json``.
    """
    left_out: list[str] = []
    grouped = by_model(verdicts)
    held_out = counted.held_out_manners if counted else {rate.manner for rate in stated.manners if rate.held_out}
    results = summarise(
        EvaluateConfig(suites=stated.suites, confidence=confidence),
        verdicts,
        held_out_manners=held_out,
        trained_attributes=counted.trained_attributes if counted else stated.trained_attributes,
        answers={model: _not_from_verdicts(stated, model, confidence) for model in stated.models},
        judges=[_judge(card, counted, grouped, confidence, left_out) for card in stated.judges],
        wins=wins_of(counted.duels) if counted else {},
        pairs=_pairs(stated, counted, confidence, left_out),
        probes=stated.probes,
        known=_knows(stated, counted, grouped, confidence, left_out),
        notes=stated.notes,
        only=_names(stated, counted, left_out),
    )
    if not counted and stated.ratings:
        results = results.model_copy(update={"ratings": _ratings(stated, left_out)})
    if names := sorted({name for mine in stated.measures.values() for name in mine if _is_asked(name)}):
        left_out.append(f"{', '.join(names)}: the answers to the questions of the public set are not kept.")
    if stated.probes:
        left_out.append("The attempts that garak counted are in no record.")
    if any(isinstance(verdict, RedactedVerdict) for verdict in verdicts):
        results = _as_stated(results, stated, NOT_IN_REDACTED)
        left_out.append(f"{', '.join(NOT_IN_REDACTED)}: it is counted over all words, and some replies are left out.")
    return Recount(results, left_out)


def recount_gate(
    guidelines: Guidelines,
    results: Results,
    explained: Mapping[str, Mapping[str, Estimate]],
    override: Callable[[Gate], Mapping[str, str]],
) -> Gate:
    """Decide the guidelines again.

    Args:
        explained: model → measure → estimate, of the stage ``explain``; empty without it.
        override: gate before overrides → (guideline → who overrides it and why).
    """
    gate = rule(guidelines, results.with_measures(explained) if explained else results)
    return overridden(gate, override(gate))


def from_count(estimate: Estimate, confidence: float) -> Estimate:
    """The rate and its interval from its count and total; the estimate itself if it has no count."""
    return estimate if estimate.count is None else wilson(estimate.count, estimate.total, confidence)


def _names(stated: Results, counted: Counted | None, left_out: list[str]) -> set[str]:
    """The measures that the version which evaluated the run had."""
    said = {name for mine in stated.measures.values() for name in mine}
    names = set(counted.measures) if counted else said
    if unknown := sorted(names - all_measures().keys()):
        left_out.append(f"{', '.join(unknown)}: this version of cai has no such measures.")
    return names


# --- Parts ---------------------------------------------------------------------------------------------------------


def _is_asked(name: str) -> bool:
    """Whether a measure comes from the questions of a suite, and not from verdicts."""
    measure = all_measures().get(name)
    return measure is None or (measure.score is None and measure.estimate is None)


def _not_from_verdicts(stated: Results, model: str, confidence: float) -> dict[str, Estimate]:
    found = stated.measures.get(model, {})
    return {name: from_count(estimate, confidence) for name, estimate in found.items() if _is_asked(name)}


def _judge(
    card: JudgeCard,
    counted: Counted | None,
    verdicts: Mapping[str, Sequence[Verdict]],
    confidence: float,
    left_out: list[str],
) -> JudgeCard:
    num_unjudged = sum(verdict.outcome == "unjudged" for mine in verdicts.values() for verdict in mine)
    if counted and card.name in counted.judged:
        again = judge_accuracy(counted.judged[card.name], confidence)
    else:
        left_out.append(f"Outcomes of the judge {card.name} on labelled replies: {OLD}.")
        totals = {label: sum(row.values()) for label, row in card.confusion.items()}
        right = {label: row.get(label, 0) for label, row in card.confusion.items()}
        again = {
            "accuracy": wilson(sum(right.values()), sum(totals.values()), confidence),
            "unseen": from_count(card.unseen, confidence),
            "by_class": {label: wilson(right[label], totals[label], confidence) for label in totals},
        }
    return card.model_copy(update=again | {"num_unjudged": num_unjudged})


def _pairs(stated: Results, counted: Counted | None, confidence: float, left_out: list[str]) -> list[PairAccuracy]:
    if counted:
        return [accuracy for picked in counted.pairs for accuracy in accuracy_by_kind(picked, confidence)]
    if stated.pairs:
        left_out.append(f"Agreement with people (pairs): {OLD}.")
    return [row.model_copy(update={"accuracy": from_count(row.accuracy, confidence)}) for row in stated.pairs]


def _knows(
    stated: Results,
    counted: Counted | None,
    verdicts: Mapping[str, Sequence[Verdict]],
    confidence: float,
    left_out: list[str],
) -> KnowsDoes | None:
    known = stated.knows_does
    if known is None:
        return None
    if counted is None or counted.probe is None:
        left_out.append(f"The card knows / does: {OLD}.")
        return known
    left_out.append("AUCs of the layers (knows / does): they follow from hidden states, which are not kept.")
    cases: dict[str, Case] = {verdict.case.id: verdict.case for verdict in next(iter(verdicts.values()))}
    asked = [cases[name] for name in counted.probe.scores if name in cases]
    ordered = {model: verdicts[model] for model in stated.models if model in verdicts}
    scores, threshold = counted.probe.scores, counted.probe.threshold
    return known.model_copy(update={"pools": compare(asked, scores, threshold, ordered, confidence)})


def _ratings(stated: Results, left_out: list[str]) -> list[Rating]:
    left_out.append(f"Ratings on the Elo scale: {OLD}.")
    return stated.ratings


def _as_stated(results: Results, stated: Results, names: Sequence[str]) -> Results:
    kept: dict[str, dict[str, Any]] = {
        model: {name: mine[name] for name in names if name in mine} for model, mine in stated.measures.items()
    }
    return results.with_measures(kept)
