"""Several runs beside each other: their last models on the same conversations, each compared with the first run's, and
what differs between the runs. One page, one Markdown file and one JSON file hold the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.constitution.files import load_constitution
from pipeline.constitution.schema import Constitution
from pipeline.core.cache import Manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.evals.changes import changes
from pipeline.evals.gate import find_guidelines, load_guidelines, rule, written_or_none
from pipeline.evals.measures import all_measures, measured
from pipeline.evals.results import Change, Estimate, Gate, Results
from pipeline.records import Record, Verdict, read_records
from pipeline.report.build import describe, whole_manifest
from pipeline.report.differences import Flip, TextChange, constitution_differences, flips, settings_differences
from pipeline.report.render import fill
from pipeline.report.seeds import over_seeds, seed_groups

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
    config: dict[str, Any]
    constitution: Constitution | None
    """None: its file can't be read any more."""


class Row(Record):
    """A row of a table: its name, and a cell for each run, then for each later run against the first."""

    title: str
    cells: list[str]


class Count(Record):
    """How many prompts of a suite had one outcome in the first run and another in the later one."""

    suite: str
    before: str
    after: str
    number: int


class Difference(Record):
    """What differs between the first run and a later one."""

    number: int
    """Of the later run."""
    settings: list[Row]
    texts: list[TextChange] | None
    """Of the constitutions; None: one can't be read any more."""
    counts: list[Count]
    flips: list[Flip]


class Seeds(Record):
    """Runs that differ in the seed alone."""

    numbers: list[int]
    """Of the runs."""
    measures: list[Row]
    """Mean, lowest and highest value, standard deviation."""


class Comparison(Record):
    """All that the files say."""

    runs: list[Row]
    """Name, then label and model."""
    caveats: list[str]
    measures: list[Row]
    seeds: list[Seeds]
    guidelines: list[Row]
    differences: list[Difference]

    @property
    def columns(self) -> list[str]:
        numbers = range(1, len(self.runs) + 1)
        return [*(f"run {n}" for n in numbers), *(f"{n} against 1" for n in numbers if n > 1)]


def write_comparison(folders: Sequence[Path], labels: Sequence[str], out: Path, guidelines: str | None = None) -> Path:
    """Compare the runs' last models, and write the page, the JSON file and the Markdown file. Returns the last's path.

    Raises:
        ArtifactError: a run has no finished evaluation, or a record file is missing or was changed.
    """
    runs = [_evaluation(folder, label) for folder, label in zip(folders, labels, strict=True)]
    comparison = compare(runs, written_or_none(guidelines))
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(" ".join(run.name for run in runs).encode()).hexdigest()[:8]
    path = out / f"comparison-{digest}.md"
    for template in ("comparison.md.j2", "comparison.html.j2"):
        text = fill(template, comparison=comparison)
        path.with_suffix(Path(template.removesuffix(".j2")).suffix).write_text(text, encoding="utf-8")
    path.with_suffix(".json").write_text(comparison.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def compare(runs: Sequence[Compared], guidelines: str | None) -> Comparison:
    """Every measure of every run, paired with the first run's, and what differs."""
    first, later = runs[0], runs[1:]
    paired = [_changes(first, run) for run in later]
    tables = [_measures(run) for run in runs]
    measures = [
        Row(
            title=measure.title,
            cells=[str(t.get(name, "")) for t in tables] + [describe(c.get(name)) for c in paired],
        )
        for name, measure in all_measures().items()
        if any(name in table for table in tables)
    ]
    groups = seed_groups([run.config for run in runs], [run.constitution for run in runs])
    return Comparison(
        runs=[Row(title=run.name, cells=[run.label, run.results.models[-1]]) for run in runs],
        caveats=_caveats(runs),
        measures=measures,
        seeds=[_seeds(group, tables) for group in groups],
        guidelines=[] if guidelines is None else _gates(runs, guidelines),
        differences=[_difference(first, run, number) for number, run in enumerate(later, start=2)],
    )


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
        config=json.loads((folder / "config.json").read_text(encoding="utf-8")),
        constitution=_constitution(folder),
    )


def _constitution(folder: Path) -> Constitution | None:
    try:
        return load_constitution(folder / "constitution.yaml")
    except ConfigError:
        return None


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


def _seeds(group: Sequence[int], tables: Sequence[dict[str, Estimate]]) -> Seeds:
    rows = {
        measure.title: over_seeds([tables[index].get(name) for index in group])
        for name, measure in all_measures().items()
    }
    return Seeds(
        numbers=[index + 1 for index in group],
        measures=[Row(title=title, cells=cells) for title, cells in rows.items() if cells],
    )


def _changes(first: Compared, other: Compared) -> dict[str, Change]:
    found = changes({"before": first.verdicts, "after": other.verdicts}, "before", "after", first.confidence)
    return {change.measure: change for change in found}


def _gates(runs: Sequence[Compared], guidelines: str) -> list[Row]:
    written = load_guidelines(find_guidelines(guidelines))
    gates: list[Gate] = [rule(written, run.results) for run in runs]
    rows = [
        Row(title=rulings[0].title, cells=[f"{r.verdict}: {r.found}" for r in rulings])
        for rulings in zip(*(gate.rulings for gate in gates), strict=True)
    ]
    return [*rows, Row(title="**gate**", cells=[f"**{gate.verdict}**" for gate in gates])]


def _difference(first: Compared, other: Compared, number: int) -> Difference:
    changed = flips(first.verdicts, other.verdicts)
    counts = Counter((flip.suite, flip.before, flip.after) for flip in changed)
    old, new = first.constitution, other.constitution
    return Difference(
        number=number,
        settings=[Row(title=name, cells=cells) for name, cells in settings_differences([first.config, other.config])],
        texts=constitution_differences(old, new) if old and new else None,
        counts=[Count(suite=s, before=b, after=a, number=n) for (s, b, a), n in counts.items()],
        flips=changed,
    )
