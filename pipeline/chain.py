"""The chain: which stage needs what, and what each one means."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import fingerprint
from pipeline.config import CHAIN, Config, to_plain
from pipeline.constitution import Constitution
from pipeline.data.loading import data_identity
from pipeline.deviations import deviations_from_paper
from pipeline.engines.models import engine_identity, model_identity

WEIGHTS = ("model/*.safetensors", "model/tokenizer.json", "model/chat_template.jinja")
# Settings of a section that change how it runs, not what comes out.
_NOT_MEANING = {"save_every_steps"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One arrow of the picture in the README."""

    name: str
    section: str
    needs: tuple[str, ...]
    product: tuple[str, ...]
    parallel: bool = True

    @property
    def module(self) -> Any:
        """Imported late: trl takes seconds, and ``cai plan`` does without it."""
        return importlib.import_module(f"pipeline.stages.{self.name}")


# The reward model's place is between preferences and align.
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(name="prompts", section="data", needs=(), product=("prompts.jsonl",), parallel=False),
        Stage(name="critique", section="critique", needs=("prompts",), product=("exchanges.jsonl",)),
        Stage(name="sft", section="sft", needs=("critique",), product=("rows.jsonl", *WEIGHTS)),
        Stage(name="preferences", section="preferences", needs=("prompts", "sft"), product=("preferences.jsonl",)),
        Stage(name="align", section="align", needs=("sft", "preferences"), product=WEIGHTS),
        Stage(
            name="evaluate",
            section="evaluate",
            needs=("prompts", "sft", "preferences", "align"),
            product=("verdicts.jsonl",),
        ),
        Stage(
            name="report",
            section="report",
            needs=("prompts", "critique", "sft", "preferences", "align", "evaluate"),
            product=("report.md", "report.html"),
            parallel=False,
        ),
    )
}
assert tuple(STAGES) == CHAIN

# Versions and wordings, kept beside the chain so that fingerprints need no heavy imports. A golden test holds them to
# the constants of the modules they speak of. Raise a stage's version when its code gives other records.
VERSIONS = {"prompts": 1, "critique": 1, "sft": 1, "preferences": 1, "align": 1, "evaluate": 1, "report": 1}


def stages_until(last: str) -> list[Stage]:
    names = list(STAGES)
    return [STAGES[name] for name in names[: names.index(last) + 1]]


class Identities:
    """What each stage of one configuration means, as the dictionary its fingerprint hashes."""

    def __init__(self, config: Config, constitution: Constitution) -> None:
        self._config, self._constitution = config, constitution
        self._base = model_identity(config.model.path, config.model.revision)
        self._feedback = engine_identity(config.engine)

    def of(self, stage: Stage, contents: Mapping[str, str]) -> dict[str, Any]:
        """The identity of a stage, given the content hashes of the stages it needs.

        The report also prints their metrics, so it is given their fingerprints instead: any change of theirs is one.
        """
        config, constitution = self._config, self._constitution
        section = to_plain(getattr(config, stage.section))
        identity: dict[str, Any] = {
            "stage": stage.name,
            "version": VERSIONS[stage.name],
            "inputs": {name: contents[name] for name in stage.needs},
        }
        if stage.name == "prompts":
            return {**identity, "data": data_identity(config.data), "min_prompts": config.data.min_prompts}
        identity["config"] = {key: value for key, value in section.items() if key not in _NOT_MEANING}
        if stage.name == "report":
            return {
                **identity,
                "model": {key: getattr(config.model, key) for key in ("name", "path", "tuning")},
                "constitution": constitution.view("report"),
                "preset": config.preset,
                "deviations": deviations_from_paper(config, constitution),
            }
        identity["seed"] = config.seed
        identity["precision"] = config.model.precision
        if stage.name in {"critique", "sft", "preferences", "evaluate"}:
            identity["base"] = self._base
        if stage.name in {"critique", "preferences"}:
            from pipeline.feedback import critique, preference

            identity["feedback"] = self._feedback
            identity["template"] = critique.TEMPLATE if stage.name == "critique" else preference.TEMPLATE
            identity["constitution"] = constitution.view("critique" if stage.name == "critique" else "preferences")
        if stage.name in {"sft", "align"}:
            tuning = config.model.tuning
            identity["tuning"] = {"kind": tuning, **({} if tuning == "full" else to_plain(config.model.lora))}
        if stage.name == "sft" and config.sft.worked_examples:
            identity["constitution"] = constitution.view("sft")
        if stage.name == "evaluate":
            from pipeline.evals import refusal

            identity["judge"] = refusal.NAME
        return identity


def folder_name(stage: Stage, identity: dict[str, Any]) -> str:
    return f"{stage.name}-{fingerprint(identity)[:16]}"


def cache_folder(output_dir: str) -> Path:
    return Path(output_dir).expanduser() / "cache"


def runs_folder(output_dir: str) -> Path:
    return Path(output_dir).expanduser() / "runs"
