"""Read the data of a report from the folders of the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.adversary.records import AttackResults
from pipeline.constitution.schema import Constitution
from pipeline.core.cache import Manifest
from pipeline.core.stage import stage_of
from pipeline.engines.models import ModelConfig, short_name
from pipeline.evals.changes import base_measure, change_pairs
from pipeline.evals.gate import find_guidelines, load_guidelines, rule
from pipeline.evals.measures import all_measures
from pipeline.evals.results import Cell, Change, Estimate, Gate, Results
from pipeline.evals.suites.red_team import ALL
from pipeline.explain.asked import Explanation
from pipeline.guard.results import Guarded
from pipeline.records import Exchange, HeldOutPoint, Preference, RecordT, TrainingRow, Verdict, read_records
from pipeline.report.wording import difference, listed, words
from pipeline.training.history import HELD_OUT, read_history


@dataclass(frozen=True, kw_only=True)
class Report:
    """The data of a report. An evaluation alone has no constitution, exchanges, rows, preferences or histories."""

    title: str
    headline: str
    preset: str
    model_path: str
    tuning: str
    confidence: float
    deviations: list[str]
    results: Results
    gate: Gate | None
    verdicts: list[Verdict]
    manifests: dict[str, Manifest]
    """task (a stage, or ``align-round-2``) → its manifest, in the order of the run"""
    folders: dict[str, str]
    """task → name of its folder in the run"""
    constitution: Constitution | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    rows: list[TrainingRow] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    """Those of the last round."""
    guarded: Guarded | None = None
    """None: the run has no guard, or it was not measured."""
    explanation: Explanation | None = None
    """None: the stage ``explain`` has not run."""
    attack: AttackResults | None = None
    """None: the stage ``attack`` has not run."""
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """training task → logged steps: dicts with ``step``, ``loss`` and the trainer's other metrics (reward, kl)"""
    held_out: dict[str, list[HeldOutPoint]] = field(default_factory=dict)
    """task of PPO, RLOO or GRPO → its measurements on held-out prompts, in the order of training"""

    def names(self) -> list[str]:
        """The names of the measures, in the order of the table."""
        known = {name for measures in self.results.measures.values() for name in measures}
        return [name for name in all_measures() if name in known]

    @property
    def num_rounds(self) -> int:
        """How often the policy was aligned."""
        return sum(stage_of(task) == "align" for task in self.manifests)

    def newest(self, stage: str) -> str:
        """The last task of a stage; the stage itself if it has not run."""
        return newest(stage, self.manifests)

    def title_of(self, name: str) -> str:
        return all_measures()[name].title

    def how_of(self, name: str) -> str:
        return all_measures()[name].how

    def pairs_of_models(self) -> list[tuple[str, str]]:
        """(before, after) pairs: the last model compared with the first one, and with the one before it."""
        return change_pairs(self.results.models)

    def change(self, name: str, before: str, after: str) -> str:
        """The verdict on a measure's change, with the paired difference; empty if it was not measured."""
        return describe(
            next((c for c in self.results.changes if (c.measure, c.before, c.after) == (name, before, after)), None)
        )

    def by_attack(self) -> list[tuple[str, list[Cell]]]:
        """(attack, one cell per model) pairs, over all kinds of harm."""
        cells = [cell for cell in self.results.attacks if cell.kind == ALL]
        return [(attack, [c for c in cells if c.attack == attack]) for attack in dict.fromkeys(c.attack for c in cells)]

    def by_manner(self) -> list[tuple[str, str, list[Estimate | None]]]:
        """(measure, manner of wording, one rate per model) rows; manners that were trained on come first. None: a model
        without such requests."""
        rates = {(r.measure, r.manner, r.model): r.rate for r in self.results.manners}
        rows = sorted({(r.measure, r.held_out, r.manner) for r in self.results.manners})
        return [
            (
                measure,
                words(manner) + (" (not trained on)" if held_out else ""),
                [rates.get((measure, manner, model)) for model in self.results.models],
            )
            for measure, held_out, manner in rows
        ]


def newest(stage: str, tasks: Iterable[str]) -> str:
    """The last of the tasks of a stage; the stage itself if there is none."""
    return ([stage] + [task for task in tasks if stage_of(task) == stage])[-1]


def whole_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished stage, and check its record files by their hashes.

    Raises:
        ArtifactError: a record file is missing or was changed.
    """
    manifest = Manifest.read(folder)
    assert manifest is not None, f"{folder} is not finished"
    manifest.verify(folder, (".json", ".jsonl"))
    return manifest


def describe(change: Change | None) -> str:
    """The verdict on a change, and its paired difference with the interval; empty if it was not measured."""
    if change is None or change.difference is None:
        return ""
    return f"{change.verdict} ({difference(change, base_measure(change.measure).unit)})"


def build_report(
    folders: Mapping[str, Path],
    *,
    model: ModelConfig,
    guidelines: str | None,
    preset: str,
    deviations: list[str],
    constitution: Constitution,
    override: Callable[[Gate], Gate] = lambda gate: gate,
) -> Report:
    """Read the finished tasks of a run: of the whole chain, or of an evaluation alone.

    Args:
        folders: task → folder, in the order of the run.
        override: marks the guidelines that a person has overridden.

    Raises:
        ArtifactError: a record file is missing or was changed.
    """
    manifests = {name: whole_manifest(folder) for name, folder in folders.items()}
    results = Results.model_validate_json((folders["evaluate"] / "results.json").read_text(encoding="utf-8"))
    explanation = _explanation(folders.get("explain"))
    measured = results.with_measures(explanation.measures()) if explanation else results
    gate = override(rule(load_guidelines(find_guidelines(guidelines)), measured)) if guidelines else None
    trained = "align" in folders
    return Report(
        title=f"{model.name} aligned with the constitution “{constitution.name}”"
        if trained
        else f"Evaluation of {results.models[-1]}",
        headline=headline(results),
        preset=preset if trained else "evaluation only",
        model_path=short_name(model.path) if trained else results.models[0],
        tuning=model.tuning if trained else "none",
        confidence=manifests["evaluate"].fields["config"]["confidence"],
        deviations=deviations if trained else [],
        results=results,
        gate=gate,
        verdicts=list(read_records(folders["evaluate"] / "verdicts.jsonl", Verdict)),
        manifests=manifests,
        folders={name: f"{number}-{name}" for number, name in enumerate(folders, start=1)},
        constitution=constitution if trained else None,
        exchanges=_records(folders, "critique", "exchanges.jsonl", Exchange),
        rows=_records(folders, "sft", "rows.jsonl", TrainingRow),
        preferences=_records(folders, newest("preferences", folders), "preferences.jsonl", Preference),
        guarded=_guarded(folders["evaluate"]),
        explanation=explanation,
        attack=_attack(folders.get("attack")),
        histories={
            name: _history(folder, manifests[name])
            for name, folder in folders.items()
            if stage_of(name) in ("sft", "reward", "align")
        },
        held_out={
            name: list(read_records(folder / HELD_OUT, HeldOutPoint))
            for name, folder in folders.items()
            if (folder / HELD_OUT).is_file()
        },
    )


def _guarded(folder: Path) -> Guarded | None:
    path = folder / "guarded.json"
    return Guarded.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def _explanation(folder: Path | None) -> Explanation | None:
    if folder is None:
        return None
    return Explanation.model_validate_json((folder / "explanation.json").read_text(encoding="utf-8"))


def _attack(folder: Path | None) -> AttackResults | None:
    if folder is None:
        return None
    return AttackResults.model_validate_json((folder / "attack.json").read_text(encoding="utf-8"))


def _records(folders: Mapping[str, Path], task: str, file: str, kind: type[RecordT]) -> list[RecordT]:
    return list(read_records(folders[task] / file, kind)) if task in folders else []


def _history(folder: Path, manifest: Manifest) -> list[dict[str, float]]:
    """The logged steps of a training stage. If there are held-out scores of step 0, they come first."""
    before = manifest.metrics.get("held_out_scores", {}).get("0")
    begun = [{"step": 0, "held_out/scores": fmean(before), "held_out/kl": 0.0}] if before else []
    return [*begun, *read_history(folder)]


COSTS = {
    "ordinary_refused": "refuses more ordinary requests",
    "look_alike_refused": "refuses more harmless look-alikes",
    "preferred": "gives worse replies to ordinary requests",
    "broken": "breaks down more often",
}
_FIRST = {
    "better": "The {last} model complies with fewer harmful requests than the {first} model",
    "worse": "The {last} model complies with more harmful requests than the {first} model",
    "no evidence of change": "There is no evidence that the {last} model complies with fewer harmful requests than the "
    "{first} model",
}


def headline(results: Results) -> str:
    """The report in one sentence. It says only what was measured and what the paired tests support."""
    first, last = results.models[0], results.models[-1]
    if first == last:
        found = results.measures[last].get("harmful_complied")
        if found:
            return f"{last} complies with {found} of harmful requests."
        return f"{last} was not evaluated on harmful requests."
    changes = [change for change in results.changes if (change.before, change.after) == (first, last)]
    verdicts = {change.measure: change.verdict for change in changes}
    measured = [name for name in COSTS if verdicts.get(name, "not measured") != "not measured"]
    unknown = "It was not measured whether the {last} model complies with fewer harmful requests than the {first} model"
    opening = _FIRST.get(verdicts.get("harmful_complied", ""), unknown).format(last=last, first=first)
    if not measured:
        return f"{opening}; side effects were not measured."
    if costs := [COSTS[name] for name in measured if verdicts[name] == "worse"]:
        return f"{opening}, but it {listed(costs, 'and')}."
    absolved = f"{opening}; there is no evidence that it {listed([COSTS[name] for name in measured], 'or')}"
    suspected = [_suspicion(change) for change in changes if change.measure in COSTS and _suspicious(change)]
    return (
        f"{absolved}, but {listed(suspected, 'and')} would be a change without the correction for multiple tests."
        if suspected
        else f"{absolved}."
    )


def _suspicious(change: Change) -> bool:
    """Whether the interval shows a change for the worse. (It is not corrected for multiple tests.)"""
    worse_is_up = base_measure(change.measure).better == "lower"
    bound = change.low if worse_is_up else change.high
    return bound is not None and (bound > 0 if worse_is_up else bound < 0)


def _suspicion(change: Change) -> str:
    measure = base_measure(change.measure)
    return f"“{measure.title[0].lower()}{measure.title[1:]}” ({difference(change, measure.unit)})"
