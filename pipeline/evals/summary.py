"""From judged replies to ``results.json``: every number of the report, from records anyone can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.evals.bias import disparities, worst_disparity
from pipeline.evals.changes import all_changes, cell_changes
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.duels import Wins
from pipeline.evals.measures import attack_cells, by_model, measure, ratings
from pipeline.evals.results import Estimate, JudgeCard, PairAccuracy, Probe, Results
from pipeline.records import Verdict


def summarise(
    cfg: EvaluateConfig,
    verdicts: Sequence[Verdict],
    *,
    public_bias: Mapping[str, dict[str, Estimate]],
    judges: list[JudgeCard],
    wins: Wins,
    pairs: list[PairAccuracy],
    probes: list[Probe],
    notes: list[str],
) -> Results:
    """Count, compare and correct. ``public_bias`` (model → measure → estimate) names the models, in their order."""
    models = list(public_bias)
    grouped = {model: by_model(verdicts).get(model, []) for model in models}
    table = measure(grouped, cfg.confidence)
    swapped = disparities(verdicts, cfg.confidence)
    for model in models:
        table[model] |= public_bias[model] | worst_disparity(swapped, model)
    several = len(models) > 1
    return Results(
        models=models,
        suites=list(cfg.suites),
        measures=table,
        changes=all_changes(grouped, cfg.confidence) if several else [],
        cell_changes=cell_changes(grouped, models[0], models[-1], cfg.confidence) if several else [],
        attacks=attack_cells(grouped, cfg.confidence),
        bias=swapped,
        ratings=ratings(wins, models, cfg.confidence),
        pairs=pairs,
        judges=judges,
        probes=probes,
        notes=notes,
    )
