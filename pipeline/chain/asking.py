"""``cai why``: open a finished run, and find what is asked: a case of its evaluation, or a prompt."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from pipeline.chain.checkpoints import read_config
from pipeline.chain.config import Config
from pipeline.chain.order import inputs_of, tasks_of
from pipeline.chain.runs import find_run, finished_tasks
from pipeline.constitution.files import load_constitution
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context
from pipeline.engines.model_checks import check_model
from pipeline.evals.answering import asked_turns
from pipeline.evals.checkpoints import checkpoints
from pipeline.evals.results import DIRECT
from pipeline.explain.base import Material
from pipeline.explain.why import Askable, Asked
from pipeline.methods.base import method_of
from pipeline.records import Case, Message
from pipeline.training.gradients import Trained

_CUTOFF = 0.8  # of difflib's ratio: a word as near as this to an id is meant to be one


def open_run(output_dir: str, name: str) -> Askable:
    """A run that has an aligned model, or an evaluation by ``cai evaluate``.

    Raises:
        ConfigError: there is no such run, it has no aligned model yet, or a model is not where it was.
    """
    folder = find_run(output_dir, name).resolve()
    config = read_config(folder)
    finished = finished_tasks(folder, config)
    if config.evaluate.checkpoints:
        material = _material(config, folder, finished)
        return Askable(name=folder.name, material=material, notes=[_no_rows(config)])
    aligning = [task for task in tasks_of(config) if task.stage.name == "align"]
    if not aligning or aligning[-1].name not in finished:
        raise ConfigError(
            f"RUN: {folder.name} has no aligned model yet; finish it with the command that began it (cai run …), then "
            "ask again."
        )
    read = inputs_of(aligning[-1], config)
    stages = {"prompts": "prompts", "critique": "critique", "sft": "sft", "align": aligning[-1].name}
    stages |= {"preferences": read["preferences"]} if "preferences" in read else {}
    stages |= {"evaluate": "evaluate"}
    folders = {stage: finished[task] for stage, task in stages.items() if task in finished}
    notes = []
    if len(aligning) > 1:
        notes.append(f"Of {len(aligning)} rounds, only the pairs of the last one are looked at.")
    if "preferences" not in read:
        notes.append(f"This model was aligned by {config.align.method} on its own samples, so there are no pairs.")
    return Askable(
        name=folder.name,
        material=_material(config, folder, folders),
        sft=_trained(config.model.path, folders["sft"]),
        aligned=_trained(str(finished[read["sft"]] / "model"), folders["align"]),
        most_sft_tokens=config.sft.max_length_tokens,
        method=method_of(config),
        align=config.align,
        notes=notes,
    )


def _material(config: Config, folder: Path, folders: dict[str, Path]) -> Material:
    context = Context(
        stage="why",
        reads={
            "seed": config.seed,
            "model": config.model,
            "policy_engine": config.policy_engine,
            "constitution": load_constitution(folder / "constitution.yaml"),
            "suites": config.evaluate,
        },
        folders=folders,
        out=folder,  # nothing is written
        launch=config.launch,
    )
    models = checkpoints(config.evaluate, context)
    for name, path in models.items():
        check_model(path, config.model.revision if path == config.model.path else None, f"RUN: its model {name}")
    return Material(context, models=models, confidence=config.evaluate.confidence, split=config.evaluate.split)


def _trained(start: str, folder: Path) -> Trained:
    adapter = folder / "adapter"
    return Trained(start=start, path=str(folder / "model"), adapter=adapter if adapter.is_dir() else None)


def _no_rows(config: Config) -> str:
    made_by = config.evaluate.run and Path(config.evaluate.run).name
    remedy = f"; ask the run that made the model: cai why {made_by}" if made_by else ""
    return f"cai evaluate trained nothing, so there are no training rows to compare with{remedy}."


def to_ask(run: Askable, words: str) -> Asked:
    """The case whose id the words are; otherwise the words are a prompt.

    Raises:
        ConfigError: the words are empty, or look like the id of a case (nearly one, or with its first part) that there
            is not; or the model gave no reply to the case.
    """
    verdicts = {verdict.case.id: verdict for verdict in run.material.verdicts.get(run.material.last, [])}
    if (verdict := verdicts.get(words)) is not None:
        if not verdict.replied:
            raise ConfigError(f"CASE: the model gave no reply to {words} ({verdict.evidence}); ask another one.")
        return Asked(messages=asked_turns(verdict.case), begun=_prefilled(verdict.case), case=verdict.case)
    if not words.strip():
        raise ConfigError("PROMPT is empty; give a request in quotes, or the id of an evaluated case.")
    parts = [name for name in verdicts if words in name and " " not in words]
    near = sorted(parts, key=lambda name: (not name.endswith(f"/{DIRECT}"), len(name)))[:1] or get_close_matches(
        words, verdicts, n=1, cutoff=_CUTOFF
    )
    if near or (" " not in words and words.partition("/")[0] in {name.partition("/")[0] for name in verdicts}):
        hint = f"; did you mean {near[0]!r}?" if near else "; the ids are in the run's folder, in verdicts.jsonl"
        raise ConfigError(f"CASE: the evaluation of {run.name} has no case {words!r}{hint}.")
    return Asked(messages=[Message(role="user", content=words)])


def _prefilled(case: Case) -> str:
    return case.messages[-1]["content"] if case.messages[-1]["role"] == "assistant" else ""
