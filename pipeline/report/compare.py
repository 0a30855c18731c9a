"""A table of several runs: their last models on the same conversations, each compared with the first run's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.cache import Manifest
from pipeline.core.errors import ArtifactError
from pipeline.evals.changes import changes
from pipeline.evals.gate import find_guidelines, load_guidelines, rule, written_or_none
from pipeline.evals.measures import all_measures, measured
from pipeline.evals.results import Change, Estimate, Gate, Results
from pipeline.records import Verdict, read_records
from pipeline.report.build import describe, whole_manifest

SETTINGS = ("split", "max_reply_tokens", "temperature", "top_p")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The evaluation of one run."""

    label: str
    name: str
    results: Results
    verdicts: list[Verdict]
    """Verdicts on the run's last model."""
    judge: str
    confidence: float
    settings: dict[str, Any]


def write_comparison(folders: Sequence[Path], labels: Sequence[str], out: Path, guidelines: str | None = None) -> Path:
    """Write a Markdown table of the runs' last models. Returns its path.

    Raises:
        ArtifactError: a run has no finished evaluation, or a record file is missing or was changed.
    """
    runs = [_evaluation(folder, label) for folder, label in zip(folders, labels, strict=True)]
    numbers = range(1, len(runs) + 1)
    lines = ["# Comparison", ""]
    lines += [f"- run {n}: `{run.name}` ({run.label}), model {run.results.models[-1]}" for n, run in enumerate(runs, 1)]
    lines += ["", *_caveats(runs), ""]
    later = [f"{n} against 1" for n in numbers if n > 1]
    lines.append("| measure | " + " | ".join([*(f"run {n}" for n in numbers), *later]) + " |")
    lines.append("| --- " * (2 * len(runs)) + "|")
    compared = [_changes(runs[0], run) for run in runs[1:]]
    found_in = [_measures(run) for run in runs]
    for name, measure in all_measures().items():
        if any(name in table for table in found_in):
            cells = [str(table.get(name, "")) for table in found_in]
            cells += [describe(found.get(name)) for found in compared]
            lines.append(f"| {measure.title} | " + " | ".join(cells) + " |")
    if (guidelines := written_or_none(guidelines)) is not None:
        lines += ["", *_gates(runs, guidelines)]
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(" ".join(run.name for run in runs).encode()).hexdigest()[:8]
    path = out / f"comparison-{digest}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _evaluation(folder: Path, label: str) -> Compared:
    found = next(folder.glob("*-evaluate"), None)
    if found is None or Manifest.read(found) is None:
        raise ArtifactError(f"run {folder.name} has no finished evaluation; run it again without until=.")
    manifest = whole_manifest(found)
    if "results.json" not in manifest.outputs:
        raise ArtifactError(f"run {folder.name} has no results.json (it is from another version); run it again.")
    results = Results.model_validate_json((found / "results.json").read_text(encoding="utf-8"))
    return Compared(
        label=label,
        name=folder.resolve().name,
        results=results,
        verdicts=[v for v in read_records(found / "verdicts.jsonl", Verdict) if v.model == results.models[-1]],
        judge=manifest.metrics["judge"],
        confidence=manifest.fields["config"]["confidence"],
        settings={name: manifest.fields["config"][name] for name in SETTINGS},
    )


def _caveats(runs: Sequence[Compared]) -> list[str]:
    """The notes above the table."""
    said = [
        "Paired tests compare each run with the first one on the conversations that both have. If the interval of a "
        "difference includes zero, there is no evidence of change."
    ]
    cases = [{v.case.id for v in run.verdicts} for run in runs]
    if any(other != cases[0] for other in cases[1:]):
        common = len(set.intersection(*cases))
        said.append(
            f"**The runs were evaluated on different prompts ({common} are common to all): do not compare their rates, "
            "only read the paired columns.**"
        )
    for name in SETTINGS:
        if len(values := list(dict.fromkeys(run.settings[name] for run in runs))) > 1:
            said.append(f"**evaluate.{name} differs ({', '.join(map(str, values))}), which may cause differences.**")
    if len({run.judge for run in runs}) > 1:
        said.append(f"**The judges differ ({', '.join(run.judge for run in runs)}), which may cause differences.**")
    return said


def _measures(run: Compared) -> dict[str, Estimate]:
    """Of the run's last model. What a run of an earlier version did not measure is computed from its verdicts."""
    model = run.results.models[-1]
    scored = {name for name, measure in all_measures().items() if measure.score is not None}
    again = measured({model: run.verdicts}, run.confidence)[model]
    return {name: found for name, found in again.items() if name in scored} | run.results.measures[model]


def _changes(first: Compared, other: Compared) -> dict[str, Change]:
    found = changes({"before": first.verdicts, "after": other.verdicts}, "before", "after", first.confidence)
    return {change.measure: change for change in found}


def _gates(runs: Sequence[Compared], guidelines: str) -> list[str]:
    written = load_guidelines(find_guidelines(guidelines))
    gates: list[Gate] = [rule(written, run.results) for run in runs]
    lines = ["| guideline | " + " | ".join(f"run {n}" for n in range(1, len(runs) + 1)) + " |"]
    lines.append("| --- " * (len(runs) + 1) + "|")
    for rulings in zip(*(gate.rulings for gate in gates), strict=True):
        lines.append(f"| {rulings[0].title} | " + " | ".join(f"{r.verdict}: {r.found}" for r in rulings) + " |")
    lines.append("| **gate** | " + " | ".join(f"**{gate.verdict}**" for gate in gates) + " |")
    return lines
