"""Checks a bundle: its hashes, its event log, its signature, and every number, counted again from the verdicts.

It imports neither torch nor transformers nor trl. Each problem is one sentence; the other checks go on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.constitution.files import load_constitution
from pipeline.core.cache import Manifest, hash_file
from pipeline.core.errors import ArtifactError, CaiError, ConfigError, first_line
from pipeline.core.json_text import NotJsonError, parse_json
from pipeline.core.log import say
from pipeline.evals.counted import Counted
from pipeline.evals.gate import load_guidelines
from pipeline.evals.results import Gate, Results
from pipeline.evidence.approve import GUIDELINES, overrides, report_hash, state
from pipeline.evidence.bundle import FACTS, FILES, FORMAT, Facts
from pipeline.evidence.differences import differences
from pipeline.evidence.events import EVENTS, Event, check_chain, read_lines
from pipeline.evidence.recount import Recount, recount, recount_gate
from pipeline.evidence.signing import SIGNATURE, check_signature
from pipeline.records import RedactedVerdict, Verdict

ModelT = TypeVar("ModelT", bound=BaseModel)


class _Listed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sha256: str
    num_bytes: int


class _Files(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: int
    files: dict[str, _Listed]


@dataclass
class Verification:
    """What was checked, and what is wrong. ``said``: label → what was found, for people."""

    said: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Numbers that were not counted again, and why."""


def verify(bundle: Path, key: Path | None = None) -> Verification:
    """Check a bundle.

    Args:
        key: the public key of the signature; None: a signature is not checked.

    Raises:
        ConfigError: there is no bundle there, or no such key.
    """
    if not bundle.is_dir() or not ((bundle / FILES).exists() or (bundle / FACTS).exists()):
        raise ConfigError(f"BUNDLE: {bundle} is no bundle (a folder with {FILES}); make one with cai bundle RUN.")
    found = Verification()
    found.said["files"] = _attempt(found, lambda: _check_files(bundle, found)) or "not as hashed"
    events = _attempt(found, lambda: check_chain(read_lines(bundle / EVENTS), EVENTS))
    found.said["event log"] = "broken" if events is None else _number(len(events), "entry", "entries")
    found.said["signature"] = _signature(bundle, key, found)
    facts = _attempt(found, lambda: _read(bundle, FACTS, Facts))
    if facts is not None and facts.format != FORMAT:
        found.problems.append(f"{FACTS}: the format is {facts.format}, and this version of cai reads {FORMAT}.")
    if facts is None or facts.format != FORMAT:
        return found
    found.said = {"bundle": f"{facts.run}, made {facts.created} by cai {facts.cai}", **found.said}
    _attempt(found, lambda: _check_links(bundle, facts, events or [], found))
    again = _attempt(found, lambda: _check_results(bundle, found))
    if again is not None:
        found.left_out += again.left_out
        _attempt(found, lambda: _check_gate(bundle, facts, again.results, events or [], found))
    return found


Result = TypeVar("Result")


def _attempt(found: Verification, check: Callable[[], Result]) -> Result | None:
    """The result of a check; None if it could not be made, which is a problem."""
    try:
        return check()
    except CaiError as error:
        found.problems.append(str(error))
    except OSError as error:
        found.problems.append(f"{Path(error.filename or '').name} is missing or can't be read ({error.strerror}).")
    except Exception as error:  # made-up numbers may break any step of the statistics
        found.problems.append(f"the records can't be counted ({type(error).__name__}: {first_line(error)}).")
    return None


# --- Hashes and signature ------------------------------------------------------------------------------------------


def _check_files(bundle: Path, found: Verification) -> str:
    listed = _read(bundle, FILES, _Files)
    there = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if not path.is_dir()}
    expected = set(listed.files) | {FILES, SIGNATURE}
    problems = [f"{name} is missing." for name in listed.files if name not in there]
    problems += [f"{name} is not listed in {FILES}; it was added." for name in sorted(there.keys() - expected)]
    for name, path in there.items():
        if path.is_symlink():
            problems.append(f"{name} is a link; a bundle has files only.")
        elif name in listed.files and hash_file(path) != listed.files[name].sha256:
            problems.append(f"{name} was changed: its SHA-256 is not the one in {FILES}.")
    found.problems += problems
    return f"{len(listed.files)} as hashed" if not problems else "not as hashed"


def _signature(bundle: Path, key: Path | None, found: Verification) -> str:
    if not (bundle / SIGNATURE).is_file():
        if key is not None:
            found.problems.append(f"{SIGNATURE} is missing: the bundle is not signed.")
        return "none: whoever handed it on could have changed everything together"
    if key is None:
        return "not checked; give the public key with --key"
    before = len(found.problems)
    _attempt(found, lambda: check_signature(bundle, key))
    return "holds" if len(found.problems) == before else "does not hold"


# --- Records that name each other ----------------------------------------------------------------------------------


def _check_links(bundle: Path, facts: Facts, events: list[Event], found: Verification) -> None:
    """Files whose hash is also in a manifest, in what was approved, or in the event log."""
    manifests = {path.stem: _read(bundle, f"manifests/{path.name}", Manifest) for path in _manifests(bundle)}
    for task, manifest in manifests.items():
        if manifest.stage != task:
            found.problems.append(f"manifests/{task}.json is the manifest of {manifest.stage}.")
    problems = found.problems
    reported = dict(facts.reported)
    if facts.redacted:
        reported.pop("results.json", None)
    for name in ("gate.json", "constitution.yaml", GUIDELINES, "results.json"):
        if name in reported and (bundle / name).is_file() and hash_file(bundle / name) != reported[name]:
            problems.append(f"{name} is not the one that the report was made with ({FACTS}).")
    evaluation = manifests.get("evaluate")
    for name in ("counted.json",) if facts.redacted else ("verdicts.jsonl", "results.json", "counted.json"):
        digest = evaluation.outputs.get(name) if evaluation else None
        if digest is not None and (not (bundle / name).is_file() or hash_file(bundle / name) != digest):
            problems.append(f"{name} is not the one that the stage evaluate wrote (manifests/evaluate.json).")
    _check_constitution(bundle, manifests.get("report"), problems)
    _check_checkpoint(bundle, manifests, problems)
    logged = {
        str(event.details.get("task")): event.details.get("manifest") for event in events if event.what == "stage"
    }
    for path in _manifests(bundle):
        if path.stem in logged and logged[path.stem] != hash_file(path):
            problems.append(f"manifests/{path.name} is not the one that the event log names.")
    reports = [event for event in events if event.what == "report"]
    if events and (not reports or reports[-1].details.get("report") != report_hash(facts.reported)):
        problems.append(f"{EVENTS} does not name this report; its last entry is missing, or {FACTS} was changed.")


def _manifests(bundle: Path) -> list[Path]:
    return sorted((bundle / "manifests").glob("*.json"))


def _check_constitution(bundle: Path, report: Manifest | None, problems: list[str]) -> None:
    read = report.fields.get("reads", {}).get("constitution") if report else None
    if read is not None and load_constitution(bundle / "constitution.yaml").model_dump(mode="json") != read:
        problems.append("constitution.yaml is not the one that the report read (manifests/report.json).")


def _check_checkpoint(bundle: Path, manifests: Mapping[str, Manifest], problems: list[str]) -> None:
    hashes = _json(bundle, "checkpoint.json")
    aligned = [manifest for task, manifest in manifests.items() if task.startswith("align")]
    if not aligned:  # an evaluation alone
        return
    newest = max(aligned, key=lambda manifest: (len(manifest.stage), manifest.stage))  # align-round-2 is after align
    for name, digest in newest.outputs.items():
        listed = hashes.get(name.removeprefix("model/"), {})
        if not isinstance(listed, dict) or listed.get("sha256") != digest:
            problems.append(f"checkpoint.json has another hash for {name} than the stage {newest.stage} wrote.")


# --- Numbers -------------------------------------------------------------------------------------------------------


def _check_results(bundle: Path, found: Verification) -> Recount:
    stated = _read(bundle, "results.json", Results)
    verdicts = _verdicts(bundle)
    counted = _read(bundle, "counted.json", Counted) if (bundle / "counted.json").is_file() else None
    confidence = float(_read(bundle, "manifests/evaluate.json", Manifest).fields["config"]["confidence"])
    twice = [asked for asked, number in Counter((v.model, v.case.id) for v in verdicts).items() if number > 1]
    if twice:
        raise ArtifactError(f"verdicts.jsonl has two verdicts on {twice[0][1]} by {twice[0][0]}.")
    models = {verdict.model for verdict in verdicts}
    if models != set(stated.models):
        names = [", ".join(sorted(some)) for some in (set(stated.models), models)]
        raise ArtifactError(f"results.json is about the models {names[0]}, and verdicts.jsonl about {names[1]}.")
    say(f"counting {len(verdicts)} verdicts of {len(models)} models again")
    again = recount(stated, verdicts, counted, confidence)
    found.problems += differences(stated, again.results, "results.json")
    found.said["numbers"] = f"{len(verdicts)} verdicts of {len(models)} models counted again"
    return again


def _check_gate(bundle: Path, facts: Facts, results: Results, events: list[Event], found: Verification) -> None:
    text = _text(bundle, "gate.json")
    if not (bundle / GUIDELINES).is_file():
        if text.strip() != "null":
            raise ArtifactError(f"gate.json has verdicts, but there is no {GUIDELINES} to decide them by.")
        found.said["gate"] = "no guidelines"
        return
    stated, guidelines = _read(bundle, "gate.json", Gate), load_guidelines(bundle / GUIDELINES)
    accepted = facts.reported.get("results.json", "")
    again = recount_gate(guidelines, results, facts.explained, lambda gate: overrides(events, gate, accepted))
    found.problems += differences(stated, again, "gate.json")
    found.said["gate"] = f"{stated.verdict}, {_number(len(stated.rulings), 'guideline', 'guidelines')} decided again"
    if facts.explained:
        found.left_out.append("Measures of the stage explain, which guidelines may limit: they are taken as stated.")
    approval = state(events, report_hash(facts.reported), guidelines.approval == "required")
    found.said["approval"] = approval.sentence or "none, and none is required"
    for ruling in stated.rulings:
        if ruling.verdict == "OVERRIDDEN":
            found.said[f"overridden: {ruling.id}"] = ruling.reason


# --- Reading -------------------------------------------------------------------------------------------------------


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _text(bundle: Path, name: str) -> str:
    try:
        return (bundle / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{name} is missing.") from None
    except UnicodeDecodeError:
        raise ArtifactError(f"{name} is damaged: it is not UTF-8 text.") from None


def _json(bundle: Path, name: str) -> Any:
    try:
        return parse_json(_text(bundle, name))
    except NotJsonError as error:
        raise ArtifactError(f"{name} is damaged ({first_line(error)}).") from None


def _read(bundle: Path, name: str, kind: type[ModelT]) -> ModelT:
    try:
        return kind.model_validate(_json(bundle, name))
    except ValidationError as error:
        raise ArtifactError(f"{name} is damaged ({_mistake(error)}).") from None


def _verdicts(bundle: Path) -> list[Verdict]:
    found: list[Verdict] = []
    for number, line in enumerate(_text(bundle, "verdicts.jsonl").rstrip("\n").split("\n"), start=1):
        try:
            raw = json.loads(line)
            kind = RedactedVerdict if isinstance(raw, dict) and "wording" in raw else Verdict
            found.append(kind.model_validate(raw))
        except ValidationError as error:
            raise ArtifactError(f"verdicts.jsonl:{number} is damaged ({_mistake(error)}).") from None
        except (ValueError, RecursionError):
            raise ArtifactError(f"verdicts.jsonl:{number} is damaged (it is not valid JSON).") from None
    return found


def _mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
