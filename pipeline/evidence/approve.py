"""Approvals and overrides: entries of a run's event log that name a person, and what exactly they accept.

An approval holds for one report: for the files in ``REPORTED`` and the weights. An override holds for one result of one
guideline. If either changes, the entry stays in the log, and says nothing about what is there now.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.cache import Manifest, cache_key, hash_file
from pipeline.core.errors import ArtifactError, ConfigError, did_you_mean
from pipeline.evals.gate import load_guidelines
from pipeline.evals.results import Gate
from pipeline.evidence.events import Event, append, read_events

GUIDELINES = "guidelines.yaml"
REPORTED = ("report.md", "gate.json", "constitution.yaml", GUIDELINES)


@dataclass(frozen=True)
class Approval:
    """Whether a run is approved. ``sentence`` says it for people; empty if there is nothing to say."""

    required: bool
    valid: bool
    sentence: str

    @property
    def awaited(self) -> bool:
        return self.required and not self.valid


def reported(run: Path) -> dict[str, str]:
    """What an approval accepts: file → SHA-256, with the results of the evaluation and the aligned weights."""
    parts = {name: hash_file(run / name) for name in REPORTED if (run / name).is_file()}
    results = stage_folder(run, "evaluate")
    if results is not None:
        parts["results.json"] = hash_file(results / "results.json")
    checkpoint = run / "checkpoint"
    if checkpoint.exists() and (manifest := Manifest.read(checkpoint.resolve().parent)):
        parts["checkpoint"] = manifest.content_hash
    return parts


def report_hash(parts: dict[str, str]) -> str:
    return cache_key(parts)


def stage_folder(run: Path, stage: str) -> Path | None:
    """The folder of a finished stage of a run, or None."""
    found = next(iter(run.glob(f"[0-9]*-{stage}")), None)
    return found if found is not None and (found / "manifest.json").is_file() else None


# --- Approvals -----------------------------------------------------------------------------------------------------


def approve(run: Path, by: str, note: str) -> str:
    """Write an approval of the report as it is now. Returns its hash.

    Raises:
        ConfigError: the name or the note is empty, the run has no report, or the gate says FAIL.
        ArtifactError: its log is damaged.
    """
    _refuse_empty(by, note)
    refuse_unfinished(run)
    gate = gate_of(run)
    if gate is not None and gate.verdict == "FAIL":
        failed = next(ruling.id for ruling in gate.rulings if ruling.verdict == "FAIL")
        raise ConfigError(
            f"RUN: the gate of {run.name} says FAIL; override each failed guideline first, or change the model "
            f"(cai approve {run.name} --override {failed} --by NAME --note TEXT)."
        )
    parts = reported(run)
    append(run, "approved", {"note": note, "report": report_hash(parts), "accepted": parts}, by)
    return report_hash(parts)


def approval_of(run: Path, required: bool | None = None) -> Approval:
    """The state of a run's approval. ``required``: None reads it from the run's guidelines."""
    if required is None:
        required = needs_approval(run / GUIDELINES)
    return state(read_events(run), report_hash(reported(run)), required)


def needs_approval(guidelines: Path) -> bool:
    return guidelines.is_file() and load_guidelines(guidelines).approval == "required"


def state(events: Sequence[Event], report: str, required: bool) -> Approval:
    """What the last approval in a log says about the report with this hash."""
    given = [event for event in events if event.what == "approved"]
    for event in given:
        if event.details.get("report") == report:
            return Approval(required, True, f"approved by {event.by} on {event.time[:10]}: {event.details.get('note')}")
    if given:
        last = given[-1]
        sentence = f"the approval by {last.by} on {last.time[:10]} is void: the report has changed since"
        return Approval(required, False, sentence)
    return Approval(required, False, "it awaits approval (cai approve)" if required else "")


# --- Overrides -----------------------------------------------------------------------------------------------------


def override(run: Path, guideline: str, by: str, note: str) -> None:
    """Write that a person accepts a failed guideline. The report must be written again afterwards.

    Raises:
        ConfigError: the name or the note is empty, the run has no report, or there is no such guideline, or it did not
            fail.
        ArtifactError: its log is damaged.
    """
    _refuse_empty(by, note)
    refuse_unfinished(run)
    gate = gate_of(run)
    rulings = {ruling.id: ruling for ruling in gate.rulings} if gate is not None else {}
    if gate is None or guideline not in rulings:
        hint = did_you_mean(guideline, rulings) if rulings else "; the run has none"
        raise ConfigError(f"--override: there is no guideline {guideline!r}{hint}.")
    ruling = rulings[guideline]
    if ruling.verdict not in {"FAIL", "OVERRIDDEN"}:
        raise ConfigError(f"--override: the guideline {guideline!r} says {ruling.verdict}; only a FAIL is overridden.")
    results = reported(run).get("results.json", "")
    details = {"guideline": guideline, "note": note, **_result(gate, guideline, results)}
    append(run, "overridden", details, by)


def overrides(events: Sequence[Event], gate: Gate, results: str) -> dict[str, str]:
    """Id of a guideline → who overrides it and why. Entries about other results or another limit are left out.

    Args:
        gate: as the guidelines decide it, before any override.
        results: SHA-256 of ``results.json``.
    """
    said: dict[str, str] = {}
    ids = {ruling.id for ruling in gate.rulings}
    for event in events:
        name = event.details.get("guideline")
        if event.what == "overridden" and name in ids:
            accepted = {key: event.details.get(key) for key in ("limit", "found", "results")}
            if accepted == _result(gate, str(name), results):
                said[str(name)] = f"overridden by {event.by} on {event.time[:10]}: {event.details.get('note')}"
    return said


def _result(gate: Gate, guideline: str, results: str) -> dict[str, str]:
    ruling = next(ruling for ruling in gate.rulings if ruling.id == guideline)
    return {"limit": ruling.limit, "found": ruling.found, "results": results}


def _refuse_empty(by: str, note: str) -> None:
    for option, text, what in (("--by", by, "the name of the person"), ("--note", note, "the reason in words")):
        if not text.strip():
            raise ConfigError(f"{option} is empty; give {what}.")


def refuse_unfinished(run: Path) -> None:
    """Raise ConfigError while a stage is being made: the report may be of an earlier checkpoint."""
    record = run / "run.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("making"):
        raise ConfigError(f"run {run.name} is not finished; run its command again.")


def gate_of(run: Path) -> Gate | None:
    path = run / "gate.json"
    if not path.is_file():
        raise ConfigError(f"run {run.name} has no report yet; finish it with the command that began it.")
    text = path.read_text(encoding="utf-8")
    try:
        return None if text.strip() == "null" else Gate.model_validate_json(text)
    except ValueError:
        raise ArtifactError(f"{path} is damaged; write it again with `cai report {run.name}`.") from None
