"""Reads what a finished run has on record, for a bundle."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.constitution.files import load_constitution
from pipeline.constitution.schema import Constitution
from pipeline.core.cache import Manifest, hash_file
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.log import say
from pipeline.core.stage import stage_of
from pipeline.evals.results import Results
from pipeline.evidence.approve import refuse_unfinished
from pipeline.records import Verdict, read_records


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run: its folder, its settings as they were written, and its stages in order."""

    name: str
    folder: Path
    config: dict[str, Any]
    constitution: Constitution
    folders: dict[str, Path]
    """task → folder"""
    manifests: dict[str, Manifest]
    results: Results
    verdicts: list[Verdict]

    @property
    def confidence(self) -> float:
        return float(self.manifests["evaluate"].fields["config"]["confidence"])

    @property
    def model_name(self) -> str:
        return str(self.config["model"]["name"])

    @property
    def base_model(self) -> str:
        """What the configuration calls the model before training, without the folders above it."""
        path = str(self.config["model"]["path"])
        return Path(path).name if Path(path).expanduser().is_absolute() else path

    def newest(self, stage: str) -> str | None:
        """The last task of a stage, or None if it has not run."""
        return next((task for task in reversed(self.manifests) if stage_of(task) == stage), None)

    def rows(self, task: str | None, file: str) -> list[dict[str, Any]]:
        """The records of a task as plain values; none if it has not run or has no such file."""
        path = self.folders[task] / file if task in self.folders else None
        if path is None or not path.is_file():
            return []
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    @property
    def checkpoint(self) -> Path | None:
        """The folder of the evaluated weights: the run's own, or that of ``cai evaluate``."""
        if (own := self.folder / "checkpoint").is_dir():
            return own.resolve()
        given = list(self.config["evaluate"]["checkpoints"].values())
        folder = Path(given[-1]).expanduser() if given else None
        return folder.resolve() if folder is not None and folder.is_dir() else None


def open_run(folder: Path) -> RunRecord:
    """Read a run. Every record file is compared with its hash, and so are the aligned weights.

    Raises:
        ConfigError: the run has no finished evaluation or no report.
        ArtifactError: a file is not as it was written.
    """
    refuse_unfinished(folder)
    links = [path for path in folder.glob("[0-9]*-*") if (path / "manifest.json").is_file()]
    links.sort(key=lambda path: int(path.name.split("-")[0]))
    folders = {path.name.partition("-")[2]: path.resolve() for path in links}
    for task, file in (("evaluate", "results.json"), ("report", "manifest.json")):
        if task not in folders or not (folders[task] / file).is_file() or not (folder / "gate.json").is_file():
            raise ConfigError(
                f"run {folder.name} has no finished {task}, so there is nothing to bundle; run its command again."
            )
    manifests: dict[str, Manifest] = {}
    for task, place in folders.items():
        found = Manifest.read(place)
        assert found is not None
        manifests[task] = found
        say(f"  checking the files of {task}")
        found.verify(place)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        results = Results.model_validate_json((folders["evaluate"] / "results.json").read_text(encoding="utf-8"))
        verdicts = list(read_records(folders["evaluate"] / "verdicts.jsonl", Verdict))
    except (OSError, ValueError):
        raise ArtifactError(f"run {folder.name} was written by another version of cai; run it again.") from None
    return RunRecord(
        name=folder.name,
        folder=folder,
        config=config,
        constitution=load_constitution(folder / "constitution.yaml"),
        folders=folders,
        manifests=manifests,
        results=results,
        verdicts=verdicts,
    )


def hash_checkpoint(folder: Path | None) -> dict[str, dict[str, Any]]:
    """File → SHA-256 and size, for the files of a checkpoint; empty without one."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    return {
        str(path.relative_to(folder)): {"sha256": hash_file(path), "num_bytes": path.stat().st_size}
        for path in files
        if folder is not None
    }


def num_parameters(folder: Path | None) -> int | None:
    """The parameters in the safetensors files of a checkpoint, by their headers; None if there are none.

    A tensor that the file does not repeat, such as tied embeddings, counts once. The header of a file is its length
    in eight bytes (little-endian), then JSON (https://github.com/huggingface/safetensors#format).
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")) if folder else []:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for dimension in tensor["shape"]:
                    size *= dimension
                total += size
    return total or None


def architecture(folder: Path | None) -> str | None:
    """The class of the model by its ``config.json``; None if it is not known."""
    names = _model_config(folder).get("architectures") or [None]
    return str(names[0]) if names[0] else None


def context_tokens(folder: Path | None) -> int | None:
    """The tokens that request and reply may have together, by the model's ``config.json``; None if it is not known."""
    return _model_config(folder).get("max_position_embeddings")


def _model_config(folder: Path | None) -> dict[str, Any]:
    path = folder / "config.json" if folder else None
    if path is None or not path.is_file():
        return {}
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read
