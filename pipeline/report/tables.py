"""Every table of the report as CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evals.measures import all_measures, group_of
from pipeline.evals.results import Disparity, Estimate, JudgeCard
from pipeline.report import knows
from pipeline.report.attacked import attack_tables
from pipeline.report.build import Report
from pipeline.report.explained.all import explain_tables
from pipeline.report.guarded import guard_tables
from pipeline.report.labels import label_tables
from pipeline.report.rewards import reward_tables
from pipeline.report.second_judge import second_judge_tables

Row = dict[str, Any]


def tables_of(report: Report) -> dict[str, list[Row]]:
    """Table name → rows. Estimates become the columns value, low, high, count and total."""
    results, gate, known = report.results, report.gate, all_measures()
    tables: dict[str, list[Row]] = {
        "measures": [
            {"model": model, "measure": name, "suite": group_of(name), "title": known[name].title}
            | _flat(found)
            | {"how": known[name].how}
            for model, measures in results.measures.items()
            for name, found in measures.items()
        ],
        "changes": [change.model_dump() for change in results.changes],
        "changes_by_cell": [change.model_dump() for change in results.cell_changes],
        "attacks": [
            {"model": cell.model, "kind": cell.kind, "attack": cell.attack} | _flat(cell.success)
            for cell in results.attacks
        ],
        "manners": [
            {"model": r.model, "measure": r.measure, "manner": r.manner, "held_out": r.held_out} | _flat(r.rate)
            for r in results.manners
        ],
        "knows_does": [
            {"pool": pool, "who": who, "quantity": quantity} | _flat(found)
            for pool, who, quantity, found in knows.quantities(results)
        ],
        "bias": [row for found in results.bias for row in _bias_rows(found, results.trained_attributes)],
        "ratings": [rating.model_dump() for rating in results.ratings],
        "pairs": [
            {"who": p.who, "role": p.role, "dataset": p.dataset, "kind": p.kind}
            | _flat(p.accuracy)
            | {"num_unanswered": p.num_unanswered}
            for p in results.pairs
        ],
        "judges": [row for card in results.judges for row in _judge_rows(card)],
        "judge_disagreements": [
            {"judge": card.name} | d.model_dump() for card in results.judges for d in card.disagreements
        ],
        "garak": [probe.model_dump() for probe in results.probes],
        "gate": [ruling.model_dump() for ruling in gate.rulings] if gate else [],
        **label_tables(report),
        **guard_tables(report),
        **attack_tables(report),
        **explain_tables(report),
        **reward_tables(report),
        **second_judge_tables(report),
    }
    return {name: rows for name, rows in tables.items() if rows}


def _bias_rows(disparity: Disparity, trained: Sequence[str]) -> list[Row]:
    """One row for each group, with what compares all groups in each of them."""
    d = disparity
    compared = {
        "difference": d.difference.value,
        "difference_low": d.difference.low,
        "difference_high": d.difference.high,
        "ratio": d.ratio.value,
        "ratio_low": d.ratio.low,
        "ratio_high": d.ratio.high,
        "p": d.p,
        "p_corrected": d.p_corrected,
    }
    head = {"model": d.model, "attribute": d.attribute, "trained_on": d.attribute in trained, "metric": d.metric}
    return [head | {"group": group} | _flat(rate) | compared for group, rate in d.rates.items()]


def _judge_rows(card: JudgeCard) -> list[Row]:
    """One row for all labelled replies, and one for each label."""
    head = {"judge": card.name, "shared_with_training": card.shared_with_training}
    return [head | {"label": label} | _flat(rate) for label, rate in {"all": card.accuracy, **card.by_class}.items()]


def _flat(estimate: Estimate) -> Row:
    return estimate.model_dump()


def write_tables(tables: dict[str, list[Row]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        (out / f"{name}.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
        _write_csv(rows, out / f"{name}.csv")


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
