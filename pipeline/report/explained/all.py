"""All answered questions, in the order of the page."""

from __future__ import annotations

from typing import Any

from pipeline.evals.results import Estimate
from pipeline.explain.asked import Explanation
from pipeline.report.build import Report
from pipeline.report.explained import adherence, depth, directions, principles, reward
from pipeline.report.explained.section import Section, Table


def sections(report: Report) -> list[Section]:
    explanation = report.explanation
    return _of(explanation) if explanation else []


def _of(explanation: Explanation) -> list[Section]:
    models, found = explanation.models, explanation
    answered = (
        found.adherence and adherence.section(found.adherence, models),
        found.principles and principles.section(found.principles, models),
        found.depth and depth.section(found.depth, models),
        found.directions and directions.section(found.directions, models),
        found.reward and reward.section(found.reward, models),
    )
    return [section for section in answered if section]


def explain_tables(report: Report) -> dict[str, Table]:
    """Table name → rows, for CSV and JSON. An estimate becomes the columns value, low, high, count and total."""
    tables = {name: rows for section in sections(report) for name, rows in section.tables.items()}
    return {f"explain_{name}": [_flat(row) for row in rows] for name, rows in tables.items()}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        parts = value.model_dump() if isinstance(value, Estimate) else {"": value}
        flat |= {f"{name}_{part}" if part else name: number for part, number in parts.items()}
    return flat
