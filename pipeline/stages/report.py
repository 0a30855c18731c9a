"""report: the evidence as one self-contained page, Markdown, a model card, and every table as CSV and JSON."""

from __future__ import annotations

from pathlib import Path

from pipeline.chain.config import ReportConfig
from pipeline.evals.gate import gate_metrics
from pipeline.report.build import build_report
from pipeline.report.write import write_report
from pipeline.stages.base import Inputs, Metrics

VERSION = 3


def run(cfg: ReportConfig, inputs: Inputs, out: Path) -> Metrics:
    report = build_report(
        inputs.folders,
        model=inputs.model,
        guidelines=inputs.guidelines,
        preset=inputs.preset,
        deviations=inputs.deviations,
        constitution=inputs.constitution,
    )
    write_report(report, out)
    return {"verdict": report.headline, **gate_metrics(report.gate)}
