"""``cai explain`` and ``cai redteam --adaptive``: a finished run, or checkpoints, as a configuration that asks more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pipeline.chain.checkpoints import read_config, with_checkpoints
from pipeline.chain.config import Config
from pipeline.chain.order import cache_folder, fields_for_key, folder_name, runs_folder, tasks_of
from pipeline.chain.preflight import read_inputs
from pipeline.chain.runs import RUN_FILE, find_run
from pipeline.constitution.files import load_constitution
from pipeline.core.cache import Manifest
from pipeline.core.errors import ConfigError
from pipeline.report.wording import listed

TAKEN = ("launch", "tracking", "output_dir")


def to_explain(config: Config, name: str, base: str | None) -> Config:
    """The configuration of a run, or of an evaluation of two checkpoints, with questions about it.

    Args:
        config: gives the settings of the questions, where it runs and the dashboard.
        name: a run, or a checkpoint that is compared with ``base``.

    Raises:
        ConfigError: there is nothing of that name, a run is not finished, or a checkpoint has nothing beside it.
    """
    asked = config.model_copy(
        update={"explain": config.explain.model_copy(update={"enabled": True}), "until": "report"}
    )
    if base is not None:
        return with_checkpoints(asked, name, base)
    return _of_run(asked, name, "explain")


def to_attack(config: Config, name: str, base: str | None) -> Config:
    """The same with attacks that adapt. A model without a run, or with a ``base``, is evaluated first."""
    attacked = config.model_copy(
        update={"attack": config.attack.model_copy(update={"enabled": True}), "until": "report"}
    )
    if base is not None or not is_run(config.output_dir, name):
        return with_checkpoints(attacked, name, base)
    return _of_run(attacked, name, "attack")


def is_run(output_dir: str, name: str) -> bool:
    """Whether there is a run of this name or in this folder."""
    folders = (Path(name).expanduser(), runs_folder(output_dir) / name)
    return any((folder / RUN_FILE).is_file() for folder in folders)


def _of_run(asked: Config, name: str, section: Literal["attack", "explain"]) -> Config:
    """The configuration of a finished run, with one section of ``asked``."""
    if (Path(name).expanduser() / "config.json").is_file() and not (Path(name).expanduser() / RUN_FILE).is_file():
        raise ConfigError(f"RUN: {name} is a model and not a run; give the model before training with --base.")
    folder = find_run(asked.output_dir, name).resolve()
    theirs = read_config(folder)
    extended = theirs.model_copy(
        update={
            section: getattr(asked, section),
            "launch": asked.launch,
            "tracking": asked.tracking,
            "until": "report",
            "output_dir": str(folder.parent.parent),
            "name": folder.name,
            "constitution": theirs.constitution.model_copy(
                update={"path": str(folder / "constitution.yaml"), "max_principles": None, "without": []}
            ),
        }
    )
    _refuse_unfinished(extended, section)
    return extended


def refuse_other_settings(overrides: Sequence[str], command: str = "explain", section: str = "explain") -> None:
    """Refuse overrides that a finished run does not take: its settings are those that it was made with.

    Raises:
        ConfigError: one of them is about something else.
    """
    for word in overrides:
        group = word.lstrip("+~").partition("=")[0].rpartition("@")[2].partition(".")[0]
        if group not in (section, *TAKEN):
            raise ConfigError(
                f"{word}: a finished run keeps its settings, so cai {command} takes only "
                f"{listed((section, *TAKEN), 'and')}; for "
                "other guidelines, run cai report RUN --guidelines FILE."
            )


def ablations(config: Config) -> dict[str, Config]:
    """Id of a principle → the configuration of the same run without it, for a run as ``to_explain`` gives it.

    Raises:
        ConfigError: the constitution has one principle only.
    """
    constitution = load_constitution(Path(config.constitution.path))
    if len(constitution.principles) == 1:
        raise ConfigError(
            "--ablate: the constitution has one principle, and none would be left; run it without --ablate."
        )
    switched_off = config.explain.model_copy(update={"enabled": False})
    return {
        principle.id: config.model_copy(
            update={
                "explain": switched_off,
                "name": f"{config.name}-without-{principle.id}",
                "constitution": config.constitution.model_copy(update={"without": [principle.id]}),
            }
        )
        for principle in constitution.principles
    }


def _refuse_unfinished(config: Config, section: str) -> None:
    """Refuse a run of which a stage would run again: it may take hours, and give another model."""
    prepared, made = read_inputs(config), dict[str, Manifest]()
    for task in tasks_of(config):
        if task.stage.name == section:
            return
        fields = fields_for_key(task, config, prepared.constitution, made)
        manifest = Manifest.read(cache_folder(config.output_dir) / folder_name(task, fields))
        if manifest is None:
            raise ConfigError(
                f"RUN: {config.name} has no finished {task.name} of this version; finish it with the command that "
                "began it (cai run …), then run this."
            )
        made[task.name] = manifest
