"""The chain: which stage needs what, and what each one means."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.chain.config import CHAIN, Config, to_plain
from pipeline.chain.config_train import CONSTITUTION, AlignConfig
from pipeline.constitution import critique
from pipeline.constitution.paper import deviations_from_paper
from pipeline.constitution.schema import Constitution
from pipeline.core.cache import fingerprint, hash_file
from pipeline.core.user_functions import function_identity
from pipeline.data.files import source_content
from pipeline.data.loading import data_identity
from pipeline.engines.models import engine_identity, model_identity
from pipeline.evals import attacks
from pipeline.evals.appoint import judge_identity, labeller_identity
from pipeline.evals.cases import SHIPPED, suites_content
from pipeline.evals.gate import find_guidelines
from pipeline.labellers import preference

WEIGHTS = ("model/*.safetensors", "model/tokenizer.json", "model/chat_template.jinja")
# Settings of a section that change how it runs, or are hashed by content instead.
_NOT_MEANING = {"save_every_steps", "checkpoints", "run", "guidelines", "judge", "pair_judge", "reward_model"}


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


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(name="prompts", section="data", needs=(), product=("prompts.jsonl",), parallel=False),
        Stage(name="critique", section="critique", needs=("prompts",), product=("exchanges.jsonl",)),
        Stage(name="sft", section="sft", needs=("critique",), product=("rows.jsonl", *WEIGHTS)),
        Stage(name="preferences", section="preferences", needs=("prompts", "sft"), product=("preferences.jsonl",)),
        Stage(
            name="reward",
            section="reward",
            needs=("sft", "preferences"),
            product=("scores.jsonl", "model/config.json", *WEIGHTS),
        ),
        Stage(name="align", section="align", needs=("prompts", "sft", "preferences", "reward"), product=WEIGHTS),
        Stage(
            name="evaluate",
            section="evaluate",
            needs=("prompts", "sft", "preferences", "reward", "align"),
            product=("verdicts.jsonl", "results.json"),
        ),
        Stage(
            name="report",
            section="report",
            needs=("prompts", "critique", "sft", "preferences", "reward", "align", "evaluate"),
            product=("report.md", "report.html", "model_card.md", "gate.json", "tables/*"),
            parallel=False,
        ),
    )
}
assert tuple(STAGES) == CHAIN

# Versions and wordings, kept beside the chain so that fingerprints need no heavy imports. A golden test holds them to
# the constants of the modules they speak of. Raise a stage's version when its code gives other records.
VERSIONS = {
    "prompts": 1,
    "critique": 1,
    "sft": 3,
    "preferences": 2,
    "reward": 1,
    "align": 1,
    "evaluate": 3,
    "report": 3,
}
_EVALUATION = ("prompts", "evaluate", "report")  # what is left of the chain when checkpoints are given


def stages_of(config: Config) -> list[Stage]:
    """The stages to run, in order: what the method needs of the chain, or the evaluation of given checkpoints."""
    names = list(STAGES)
    names = names[: names.index(config.until) + 1]
    if config.evaluate.checkpoints:
        names = [name for name in names if name in _EVALUATION]
    else:
        names = [name for name in names if name == config.until or name not in _not_needed(config.align)]
    return [replace(STAGES[name], needs=tuple(n for n in _needs(name, config.align) if n in names)) for name in names]


def _not_needed(align: AlignConfig) -> set[str]:
    """Stages that nothing reads: only methods on pairs and the reward model need preferences."""
    if align.wants_reward_stage:
        return set()
    return {"reward"} if align.wants_pairs else {"preferences", "reward"}


def _needs(name: str, align: AlignConfig) -> tuple[str, ...]:
    if name != "align":
        return STAGES[name].needs
    read = {
        "prompts": align.online,
        "sft": True,
        "preferences": align.wants_pairs,
        "reward": align.wants_reward_stage,
    }
    return tuple(needed for needed in STAGES[name].needs if read[needed])


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
            guidelines = config.evaluate.guidelines
            return {
                **identity,
                "guidelines": hash_file(find_guidelines(guidelines)) if guidelines else None,
                "checkpoints": list(config.evaluate.checkpoints),
                "model": {key: getattr(config.model, key) for key in ("name", "path", "tuning")},
                "constitution": constitution.view("report"),
                "preset": config.preset,
                "deviations": deviations_from_paper(config, constitution),
            }
        identity["seed"] = config.seed
        identity["precision"] = config.model.precision
        if stage.name in {"critique", "sft", "preferences", "reward", "evaluate"}:
            identity["base"] = self._base
        if stage.name in {"critique", "preferences"}:
            identity["feedback"] = self._feedback
            identity["template"] = critique.TEMPLATE if stage.name == "critique" else preference.TEMPLATE
            identity["constitution"] = constitution.view("critique" if stage.name == "critique" else "preferences")
        if stage.name == "align":
            identity |= self._alignment(config.align, identity["config"])
        if stage.name == "reward":
            identity["human"] = source_content("reward.human", config.reward.human, SHIPPED)
        if stage.name in {"sft", "reward", "align"}:
            tuning = config.model.tuning
            identity["tuning"] = {"kind": tuning, **({} if tuning == "full" else to_plain(config.model.lora))}
        if stage.name == "sft" and config.sft.worked_examples:
            identity["constitution"] = constitution.view("sft")
        if stage.name == "evaluate":
            identity |= self._evaluation(config)
        return identity

    def _alignment(self, cfg: AlignConfig, section: dict[str, Any]) -> dict[str, Any]:
        """The settings that the method reads, and who gives the rewards."""
        unread = {"rewards", "functions"} | ({"judge"} if CONSTITUTION not in cfg.weights else set())
        unread |= (set() if cfg.method == "ppo" else {"ppo"}) | (set() if cfg.online else {"rollout"})
        identity: dict[str, Any] = {"config": {key: value for key, value in section.items() if key not in unread}}
        if cfg.weights:
            identity["rewards"] = cfg.weights
            identity["reward_model"] = cfg.reward_model and model_identity(cfg.reward_model, None)
            functions = {name: place for name, place in cfg.functions.items() if name in cfg.weights}
            identity["functions"] = {name: function_identity(place) for name, place in functions.items()}
        if CONSTITUTION in cfg.weights:
            identity["feedback"] = labeller_identity(self._config.engine, self._config.model)
            identity["labels"] = to_plain(self._config.preferences)
            identity["template"] = preference.TEMPLATE
            identity["constitution"] = self._constitution.view("preferences")
        return identity

    def _evaluation(self, config: Config) -> dict[str, Any]:
        """Whom it evaluates, who judges, what is asked, and the labeller that is set against people's choices."""
        cfg = config.evaluate
        return {
            "checkpoints": {name: model_identity(path, None) for name, path in cfg.checkpoints.items()},
            "judges": [judge_identity(cfg.judge), judge_identity(cfg.pair_judge)],
            "reward_model": cfg.reward_model and model_identity(cfg.reward_model, None),
            "suites": suites_content(cfg),
            "attacks": attacks.TEMPLATE,
            "labeller": [to_plain(config.preferences), labeller_identity(config.engine, config.model)],
            "template": preference.TEMPLATE,
            "constitution": self._constitution.view("preferences"),
        }


def folder_name(stage: Stage, identity: dict[str, Any]) -> str:
    return f"{stage.name}-{fingerprint(identity)[:16]}"


def cache_folder(output_dir: str) -> Path:
    return Path(output_dir).expanduser() / "cache"


def runs_folder(output_dir: str) -> Path:
    return Path(output_dir).expanduser() / "runs"
