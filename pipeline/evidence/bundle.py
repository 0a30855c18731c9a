"""Writes the evidence of a run into one folder, which another machine can check (``verify.py``)."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline import __version__
from pipeline.core.cache import hash_file
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.log import say
from pipeline.evals.results import Estimate
from pipeline.evidence.approve import GUIDELINES, reported
from pipeline.evidence.bom import bill_of_materials
from pipeline.evidence.collect import RunRecord, architecture, context_tokens, hash_checkpoint, num_parameters, open_run
from pipeline.evidence.compute import compute_estimate
from pipeline.evidence.croissant import croissant
from pipeline.evidence.data import data_summary
from pipeline.evidence.events import EVENTS, read_events
from pipeline.evidence.form import documentation_form
from pipeline.evidence.mapping import SHIPPED, load_mapping, mapped
from pipeline.evidence.redact import redact_results, redact_verdicts
from pipeline.evidence.signing import sign
from pipeline.records import write_records

FILES = "files.json"
FACTS = "bundle.json"
FORMAT = 1
WEIGHTS = "weights"

_README = """\
This folder is the evidence of the run {name}. Check it on any machine that has cai: `cai verify FOLDER`.

files.json          SHA-256 of every other file       bundle.json       what was bundled, when, with which version
checkpoint.json     SHA-256 of the model's files      constitution.yaml, guidelines.yaml   as used
verdicts.jsonl      every reply and its verdict       counted.json      what else the numbers are counted from
results.json        every rate, interval, comparison  gate.json         the verdict on each guideline
manifests/          each stage: settings, inputs, hashes of outputs, time, packages
data.json           sources, licences, share written by models      compute.json   FLOP and energy, with assumptions
hazards.json        principles by public frameworks   mapping.yaml      the table for that
form.json           items of the EU Model Documentation Form        bom.cdx.json   CycloneDX 1.7
croissant.json      the generated data, as Croissant  environment.json  packages and hardware
events.jsonl        who started, approved and overrode what, as a hash chain
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a bundle holds beside the usual."""

    redact: bool = False
    weights: bool = False
    """Also the files of the model."""
    sign: Path | None = None
    """A private key."""
    mapping: Path | None = None
    """A table of hazards instead of the shipped one."""
    base_flop: float | None = None
    watts: float | None = None


class Facts(BaseModel):
    """``bundle.json``."""

    model_config = ConfigDict(extra="forbid")

    format: int
    run: str
    created: str
    cai: str
    redacted: bool
    reported: dict[str, str]
    """What an approval accepts: file → SHA-256."""
    explained: dict[str, dict[str, Estimate]]
    """Measures of the stage ``explain``: model → measure → estimate."""


def write_bundle(run_folder: Path, output: Path, options: Options) -> None:
    """Write the bundle of a run to the folder ``output``, which must not exist.

    Raises:
        ConfigError: the folder exists or can't be written, or an option can't be used.
        ArtifactError: the run is not finished, or a file of it is not as it was written.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(f"--output: {output} already exists; give another folder, or remove it.")
    table = load_mapping(options.mapping or SHIPPED)
    say(f"bundling {run_folder.name}")
    run = open_run(run_folder)
    read_events(run_folder)  # a damaged log is refused
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        try:
            salt = secrets.token_bytes(32) if options.redact else None
            _write(run, partial, options, salt)
            _write_json(partial / "hazards.json", mapped(run, table))
            shutil.copyfile(options.mapping or SHIPPED, partial / "mapping.yaml")
            _write_json(partial / FILES, {"format": FORMAT, "files": hashes(partial)})
            if options.sign is not None:
                sign(partial, options.sign)
            partial.rename(output)
            if salt is not None:
                _write_salt(output, salt)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"--output: {output} can't be written ({error.strerror}); give another folder.") from None


def hashes(bundle: Path) -> dict[str, dict[str, Any]]:
    """File → SHA-256 and size, of all files but ``files.json`` itself."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file() and path != bundle / FILES)
    return {
        path.relative_to(bundle).as_posix(): {"sha256": hash_file(path), "num_bytes": path.stat().st_size}
        for path in files
    }


def _write(run: RunRecord, out: Path, options: Options, salt: bytes | None) -> None:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    checkpoint = hash_checkpoint(run.checkpoint)
    kind, evaluation = architecture(run.checkpoint), run.folders["evaluate"]
    data = data_summary(run)
    compute = compute_estimate(run, num_parameters(run.checkpoint), options.base_flop, options.watts)
    if salt is None:
        _copy(evaluation, out, ["verdicts.jsonl", "results.json"])
    else:
        write_records(out / "verdicts.jsonl", redact_verdicts(run.verdicts, salt))
        results = redact_results(run.results, salt)
        (out / "results.json").write_text(results.model_dump_json(indent=1), encoding="utf-8")
    if (evaluation / "counted.json").is_file():
        _copy(evaluation, out, ["counted.json"])
    _copy(run.folder, out, ["constitution.yaml", "gate.json"])
    _copy(run.folder, out, [name for name in (GUIDELINES, EVENTS) if (run.folder / name).is_file()])
    if not (out / GUIDELINES).is_file():
        _find_guidelines(run, out / GUIDELINES)
    (out / "manifests").mkdir()
    for task, folder in run.folders.items():
        shutil.copyfile(folder / "manifest.json", out / "manifests" / f"{task}.json")
    if options.weights and run.checkpoint is not None:
        say("  copying the weights")
        shutil.copytree(run.checkpoint, out / WEIGHTS)
    facts = Facts(
        format=FORMAT,
        run=run.name,
        created=created,
        cai=__version__,
        redacted=salt is not None,
        reported=reported(run.folder),
        explained=_explained(run),
    )
    (out / FACTS).write_text(facts.model_dump_json(indent=1), encoding="utf-8")
    written = {
        "checkpoint.json": checkpoint,
        "data.json": data,
        "compute.json": compute,
        "environment.json": _environment(run),
        "form.json": documentation_form(run, created, checkpoint, data, compute, kind, context_tokens(run.checkpoint)),
        "bom.cdx.json": bill_of_materials(run, created, checkpoint, data, compute["energy_kwh"], kind),
        "croissant.json": croissant(run, created, data),
    }
    for name, value in written.items():
        _write_json(out / name, value)
    (out / "README.txt").write_text(_README.format(name=run.name), encoding="utf-8")


def _copy(source: Path, out: Path, names: Iterable[str]) -> None:
    for name in names:
        shutil.copyfile(source / name, out / name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_salt(bundle: Path, salt: bytes) -> None:
    """Beside the bundle, for its maker alone."""
    path = bundle.with_name(f"{bundle.name}.salt")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(salt.hex() + "\n")
    say(f"salt: {path} (keep it: with it and a text you can show that a hash is of that text; do not hand it on)")


def _find_guidelines(run: RunRecord, target: Path) -> None:
    """The guidelines of a run that kept no copy of them, if the file is still the one that the report read."""
    from pipeline.evals.gate import find_guidelines

    read = run.manifests["report"].fields["reads"]["guidelines"]
    if read is None:
        return
    name = run.config["evaluate"]["guidelines"]
    path = find_guidelines(name)
    if hash_file(path) != read:
        raise ArtifactError(
            f"the guidelines {name} are not those that the report of {run.name} was judged by; write the report again "
            f"(cai report {run.name})."
        )
    shutil.copyfile(path, target)


def _explained(run: RunRecord) -> dict[str, dict[str, Estimate]]:
    if "explain" not in run.folders:
        return {}
    from pipeline.explain.asked import Explanation

    text = (run.folders["explain"] / "explanation.json").read_text(encoding="utf-8")
    return Explanation.model_validate_json(text).measures()


def _environment(run: RunRecord) -> dict[str, Any]:
    return {
        "stages": {task: manifest.environment for task, manifest in run.manifests.items()},
        "git_commit_at_bundling": _git_commit() or "not known",
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this code is in; None if it is installed otherwise."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None
