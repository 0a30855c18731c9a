"""The evaluated models: where they are, and what they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.core.stage import Context
from pipeline.engines.roles import BASE
from pipeline.evals.config import EvaluateConfig
from pipeline.records import Preference, Prompt, TrainingRow, dialogue_key, read_records

MODELS = (BASE, "sft", "aligned")


def checkpoints(config: EvaluateConfig, context: Context) -> dict[str, str]:
    """Name → path of each model. The others are compared with the first one."""
    if config.checkpoints:
        return dict(config.checkpoints)
    trained = [str(context.folder(stage) / "model") for stage in ("sft", "align")]
    return dict(zip(MODELS, [context.model.path, *trained], strict=True))


def training_folders(config: EvaluateConfig, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Stage → folder: those of the chain, or of the run that made the checkpoint."""
    own = Path(config.run).glob("[0-9]*-*") if config.run is not None else ()
    return dict(folders) | {folder.name.split("-", 1)[1]: folder for folder in own}


def trained_keys(config: EvaluateConfig, folders: Mapping[str, Path]) -> dict[str, str]:
    """Dialogue key → where it was trained on. (``check`` already refuses requests of the constitution.)"""
    keys: dict[str, str] = {}
    folders = training_folders(config, folders)
    if "sft" in folders:
        for row in read_records(folders["sft"] / "rows.jsonl", TrainingRow):
            keys[dialogue_key(row.messages)] = "the SFT rows"
    if "preferences" in folders:
        for preference in read_records(folders["preferences"] / "preferences.jsonl", Preference):
            keys[preference.comparison.prompt.key] = "the preferences"
    if "reward" in folders:
        for preference in read_records(folders["reward"] / "rows.jsonl", Preference):
            keys.setdefault(preference.comparison.prompt.key, "the reward model's pairs")
    if "align" in folders and (folders["align"] / "prompts.jsonl").exists():  # only online methods have it
        for prompt in read_records(folders["align"] / "prompts.jsonl", Prompt):
            keys.setdefault(prompt.key, "alignment")
    return keys
