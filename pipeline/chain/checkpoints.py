"""``cai evaluate``: turn a checkpoint on the command line into a configuration that evaluates nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.chain.config import Config, to_config
from pipeline.core.errors import ArtifactError, ConfigError

_GENERIC = {"checkpoint", "model", "adapter", "final"}  # folder names that say nothing of what is in them


def with_checkpoints(config: Config, checkpoint: str, base: str | None) -> Config:
    """Evaluate ``checkpoint``, set against ``base`` where one is given.

    The checkpoint of a run is evaluated on the run's own data, with its labeller, and not on what it was trained on.
    Any other labels for itself.
    """
    if config.until not in {"evaluate", "report"}:
        raise ConfigError(f"until is {config.until!r}, but only evaluate and report are run here; leave it out.")
    path = find_checkpoint(checkpoint, config.output_dir)
    names = {name_of(path): path}
    if base is not None:
        base_path = find_checkpoint(base, config.output_dir)
        if base_path == path:
            raise ConfigError(f"--base is {base!r}, the checkpoint itself; name another model, or leave it out.")
        first = name_of(base_path)
        names = {first if first not in names else f"base-{first}": base_path, **names}
    evaluation = config.evaluate.model_copy(update={"checkpoints": names})
    run = Path(path).parent
    if Path(path).name == "checkpoint" and (run / "config.json").is_file():
        theirs = read_config(run)
        where = {"path": str(run / "constitution.yaml"), "max_principles": None}
        return config.model_copy(
            update={
                "model": theirs.model,
                "data": theirs.data,
                "constitution": theirs.constitution.model_copy(update=where),
                "preferences": theirs.preferences,
                "engine": theirs.engine,
                "evaluate": evaluation.model_copy(update={"run": str(run)}),
            }
        )
    model = config.model.model_copy(update={"path": path, "name": slug(name_of(path)), "revision": None})
    return config.model_copy(update={"model": model, "evaluate": evaluation})


def read_config(run: Path) -> Config:
    """The configuration that a run was made with."""
    path = run / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run the same command again to write it anew.") from None
    try:
        return to_config(raw)
    except ConfigError as error:
        reason = str(error).rstrip(".")
        raise ArtifactError(f"{path} was written by another version ({reason}); run it again with this one.") from None


def find_checkpoint(name: str, output_dir: str) -> str:
    """A folder or hub id as it is; the name or folder of a run stands for its checkpoint.

    ``latest`` on the way is followed at once: it may mean another run later.
    """
    given = Path(name).expanduser()
    for run in (given, Path(output_dir).expanduser() / "runs" / name):
        if (run / "checkpoint" / "config.json").is_file():
            return str(run.resolve() / "checkpoint")
        if (run / "run.json").is_file():
            raise ConfigError(f"CHECKPOINT: the run {name!r} has no checkpoint; name one that was trained to the end.")
    return str(given.parent.resolve() / given.name) if given.is_dir() else name


def name_of(path: str) -> str:
    """A short name for tables: the last part of the path that says something."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    parts = [part for part in folder.absolute().parts if part.casefold() not in _GENERIC]
    return parts[-1] if parts else path


def slug(name: str) -> str:
    """A name as part of a folder's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.") or "model"
