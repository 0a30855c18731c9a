"""Write all files of a report into one folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.build import Report
from pipeline.report.card import model_card
from pipeline.report.render import render
from pipeline.report.tables import tables_of, write_tables

FILES = ("report.md", "report.html", "model_card.md", "gate.json")
TABLES = "tables"


def write_report(report: Report, out: Path) -> None:
    (out / "report.md").write_text(render("report.md.j2", report), encoding="utf-8")
    (out / "report.html").write_text(render("report.html.j2", report), encoding="utf-8")
    (out / "model_card.md").write_text(model_card(report), encoding="utf-8")
    gate = report.gate.model_dump_json(indent=1) if report.gate else "null"
    (out / "gate.json").write_text(gate + "\n", encoding="utf-8")
    write_tables(tables_of(report), out / TABLES)
