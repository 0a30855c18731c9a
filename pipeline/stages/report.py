"""report: the evidence as one Markdown file and one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import ReportConfig
from pipeline.report.build import build_report
from pipeline.report.render import render
from pipeline.stages.base import Inputs, Metrics

VERSION = 1


def run(cfg: ReportConfig, inputs: Inputs, out: Path) -> Metrics:
    report = build_report(
        inputs.folders, inputs.constitution, inputs.model, inputs.preset, inputs.deviations, cfg.num_transcripts
    )
    (out / "report.md").write_text(render("report.md.j2", report), encoding="utf-8")
    (out / "report.html").write_text(render("report.html.j2", report), encoding="utf-8")
    return {"num_transcripts": len(report.transcripts), "verdict": report.headline}
