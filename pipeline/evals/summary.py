"""Compute ``results.json``, with all numbers of the report, from the verdicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.core.tracking import Tracker
from pipeline.evals.changes import all_changes, cell_changes
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.duels import Wins
from pipeline.evals.manners import manner_rates
from pipeline.evals.measures import all_measures, by_model, judged_measures, measured, ratings
from pipeline.evals.results import Estimate, JudgeCard, KnowsDoes, PairAccuracy, Probe, Results
from pipeline.records import Verdict

NUM_CASES_SHOWN = 20  # in a dashboard, which becomes slow with all; the report has all


def summarise(
    config: EvaluateConfig,
    verdicts: Sequence[Verdict],
    *,
    held_out_manners: Collection[str],
    trained_attributes: Sequence[str] = (),
    answers: Mapping[str, dict[str, Estimate]],
    judges: list[JudgeCard],
    wins: Wins,
    pairs: list[PairAccuracy],
    probes: list[Probe],
    known: KnowsDoes | None = None,
    notes: list[str],
    only: Collection[str] | None = None,
) -> Results:
    """All results of an evaluation.

    Args:
        trained_attributes: those about whose groups the run trained on counterfactual prompts.
        answers: model → measure → estimate, from the suites' questions. Its keys are all models, in order.
        only: the names of the measures; None: all.
    """
    models = list(answers)
    grouped = {model: by_model(verdicts).get(model, []) for model in models}
    names = all_measures() if only is None else only
    counted = measured(grouped, config.confidence)
    table = {model: {name: found for name, found in mine.items() if name in names} for model, mine in counted.items()}
    tables: dict[str, Any] = {}
    for suite in config.selected:
        tables |= suite.tables(grouped, config.confidence)
    several = len(models) > 1
    return Results(
        models=models,
        suites=list(config.suites),
        measures={model: table[model] | answers[model] for model in models},
        judged=[
            name
            for name in judged_measures(grouped[models[0]], grouped[models[-1]], config.confidence)
            if name in names
        ],
        changes=all_changes(grouped, config.confidence, only) if several else [],
        cell_changes=cell_changes(grouped, models[0], models[-1], config.confidence) if several else [],
        manners=manner_rates(grouped, held_out_manners, config.confidence),
        ratings=ratings(wins, models, config.confidence),
        pairs=pairs,
        judges=judges,
        trained_attributes=list(trained_attributes),
        probes=probes,
        knows_does=known,
        notes=notes,
        **tables,
    )


def track(verdicts: Sequence[Verdict], results: Results, tracker: Tracker) -> None:
    """Show every measure, and the replies of all models to some of the cases, in the dashboard."""
    cases = list(dict.fromkeys(verdict.case.id for verdict in verdicts))
    step = max(1, -(-len(cases) // NUM_CASES_SHOWN))  # rounded up
    places = {case: place for place, case in enumerate(cases[::step])}
    rows = [
        (f"{v.case.prompt.request} ({v.case.prompt.pool}, {v.case.attack})", f"{v.model}: {v.outcome}", v.reply)
        for v in sorted((v for v in verdicts if v.case.id in places), key=lambda v: places[v.case.id])
    ]
    tracker.table("evaluate/replies", ("prompt", "model", "reply"), rows)
    for model, measures in results.measures.items():
        known = {name: found.value for name, found in measures.items() if found.value is not None}
        tracker.log({f"evaluate/{model}/{name}": value for name, value in known.items()})
    names = list(dict.fromkeys(name for measures in results.measures.values() for name in measures))
    table = [(name, *(str(results.measures[model].get(name, "")) for model in results.models)) for name in names]
    tracker.table("evaluate/table", ("measure", *results.models), table)
