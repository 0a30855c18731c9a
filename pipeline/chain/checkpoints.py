"""``cai evaluate``: turn a checkpoint on the command line into a configuration that evaluates only this checkpoint."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.chain.config import Config, to_config
from pipeline.chain.order import runs_folder
from pipeline.core.errors import ArtifactError, ConfigError, did_you_mean
from pipeline.engines.model_checks import check_model

CHECKPOINT = "checkpoint"
"""In the folder of a run: a link to the aligned model, as soon as it is trained."""
_GENERIC = {CHECKPOINT, "model", "adapter", "final"}  # folder names that don't describe the model


def with_checkpoints(config: Config, checkpoint: str, base: str | None) -> Config:
    """A configuration that evaluates ``checkpoint`` and compares it with ``base``, if given.

    The checkpoint of a run uses the data and the labeller of that run, so it is not evaluated on its training data.
    Any other checkpoint is its own labeller. Raises ConfigError for a checkpoint or an ``until`` that can't be used.
    """
    if config.until not in {"evaluate", "report"}:
        raise ConfigError(f"until is {config.until!r}, but only evaluate and report run here; leave it out.")
    path = find_checkpoint(checkpoint, config.output_dir, "CHECKPOINT")
    names = {name_of(path): path}
    if base is not None:
        base_path = find_checkpoint(base, config.output_dir, "--base")
        if base_path == path:
            raise ConfigError(f"--base is {base!r}, the checkpoint itself; give another model, or leave it out.")
        first = name_of(base_path)
        names = {first if first not in names else f"base-{first}": base_path, **names}
    evaluation = config.evaluate.model_copy(update={"checkpoints": names})
    if run := run_of(path):
        theirs = read_config(run)
        where: dict[str, Any] = {"path": str(run / "constitution.yaml"), "max_principles": None, "without": []}
        return config.model_copy(
            update={
                "model": theirs.model,
                "data": theirs.data,
                "constitution": theirs.constitution.model_copy(update=where),
                "critique": theirs.critique,
                "preferences": theirs.preferences,
                "engine": theirs.engine,
                "adversary": theirs.adversary,  # no attack may use the families that it trained on
                "evaluate": evaluation.model_copy(update={"run": str(run)}),
            }
        )
    model = config.model.model_copy(update={"path": path, "name": slug(name_of(path)), "revision": None})
    return config.model_copy(update={"model": model, "evaluate": evaluation})


def read_config(run: Path) -> Config:
    """The configuration of a run. Raises ArtifactError if its file can't be read."""
    path = run / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run the same command again to rewrite it.") from None
    try:
        return to_config(raw)
    except ConfigError as error:
        reason = str(error).rstrip(".")
        raise ArtifactError(f"{path} was written by another version ({reason}); run it again with this one.") from None


def find_checkpoint(name: str, output_dir: str, field: str) -> str:
    """The path of a model: a folder or hub id is returned as it is, and a run (name or folder) gives its checkpoint.

    Links such as ``latest`` are resolved now, because they may point to another run later.

    Raises:
        ConfigError: there is neither a run nor a model of this name. ``field``: where it was given.
    """
    given, runs = Path(name).expanduser(), runs_folder(output_dir)
    for run in (given, runs / name):
        if (run / CHECKPOINT / "config.json").is_file():
            return str(run.resolve() / CHECKPOINT)
        if (run / "run.json").is_file():
            raise ConfigError(
                f"{field}: the run {name!r} has no checkpoint; run its command again to finish the stage align, or "
                "give another run."
            )
    if given.is_dir():
        return str(given.parent.resolve() / given.name)
    try:
        check_model(name, None, field)
    except ConfigError as error:
        known = [path.parent.parent.name for path in runs.glob("*/checkpoint/config.json")]
        if get_close_matches(given.name, known):
            raise ConfigError(f"{field}: there is no run or model {name!r}{did_you_mean(given.name, known)}.") from None
        if known and "/" not in name:
            raise ConfigError(f"{str(error).rstrip('.')}; or give a run{did_you_mean(given.name, known)}.") from None
        raise
    return name


def run_of(path: str) -> Path | None:
    """The run that a path of ``find_checkpoint`` is the checkpoint of; None for any other model."""
    run = Path(path).parent
    return run if Path(path).name == CHECKPOINT and (run / "config.json").is_file() else None


def name_of(path: str) -> str:
    """A short name for tables: the last part of the path that describes the model."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    parts = [part for part in folder.absolute().parts if part.casefold() not in _GENERIC]
    return parts[-1] if parts else path


def slug(name: str) -> str:
    """A name with only the characters that a folder name may have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.") or "model"
