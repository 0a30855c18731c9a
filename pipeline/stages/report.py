"""report: write the results as one HTML page, Markdown, a model card, and tables as CSV and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.constitution.paper import deviations_from_paper
from pipeline.constitution.schema import Constitution
from pipeline.core.cache import hash_file
from pipeline.core.settings import Settings, part
from pipeline.core.stage import Context, Metrics, Prepared, Stage
from pipeline.core.tracking import Tracker
from pipeline.evals.gate import find_guidelines, gate_metrics, load_guidelines
from pipeline.evals.measures import base_name, group_of
from pipeline.report.build import Report as BuiltReport
from pipeline.report.build import build_report
from pipeline.report.write import write_report

if TYPE_CHECKING:
    from pipeline.chain.config import Config


class Guidelines:
    """The guideline file. A cache key holds the hash of its content."""

    def __init__(self, name: str | None) -> None:
        self.name = name

    def key(self) -> str | None:
        return hash_file(find_guidelines(self.name)) if self.name else None


class Report(Stage):
    """All results, for people to read."""

    name = "report"
    needs = (
        "prompts",
        "critique",
        "sft",
        "preferences",
        "reward",
        "align",
        "guard",
        "evaluate",
        "attack",
        "explain",
        "adversary",
    )
    outputs = ("report.md", "report.html", "model_card.md", "gate.json", "tables/*")
    version = 7
    parallel = trains = False
    reads_whole_inputs = reads_every_round = True

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        return {
            "guidelines": Guidelines(config.evaluate.guidelines),
            "model": part(config.model, "name", "path", "tuning"),
            "constitution": constitution,
            "preset": config.preset,
            "deviations": deviations_from_paper(config, constitution),
            "checkpoints": list(config.evaluate.checkpoints),
        }

    def check(self, prepared: Prepared) -> list[str]:
        if prepared.config.evaluate.guidelines is None:
            return []
        written = load_guidelines(find_guidelines(prepared.config.evaluate.guidelines))
        explained = [limit.measure for limit in written.guidelines if group_of(base_name(limit.measure)) == "explain"]
        if explained and not prepared.config.explain.enabled:
            return [
                f"evaluate.guidelines limits {explained[0]}, which only the stage explain measures, so it will be "
                "undecided; add explain.enabled=true."
            ]
        return []

    def run(self, config: Settings, context: Context) -> Metrics:
        report = build_report(
            context.folders,
            model=context.model,
            guidelines=context.guidelines.name,
            preset=context.preset,
            deviations=context.deviations,
            constitution=context.constitution,
        )
        write_report(report, context.out)
        track(report, context.tracker)
        return {"verdict": report.headline, **gate_metrics(report.gate)}


def track(report: BuiltReport, tracker: Tracker) -> None:
    """Show the gate, what changed and the measures of the last model in the dashboard."""
    results = report.results
    changes = [
        (f"{c.after} against {c.before}", c.measure, c.verdict, f"{c.difference:.3g}", _interval(c.low, c.high))
        for c in results.changes
        if c.difference is not None
    ]
    tracker.table("changes", ("models", "measure", "verdict", "difference", "interval"), changes)
    if report.gate:
        rulings = [(r.verdict, r.title, r.found, r.limit, r.reason) for r in report.gate.rulings]
        tracker.table("gate", ("verdict", "guideline", "found", "limit", "reason"), rulings)
    measures = results.measures[results.models[-1]]
    values = {f"result/{name}": found.value for name, found in measures.items() if found.value is not None}
    tracker.result({"gate": report.gate.verdict if report.gate else "none", **values})


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"
