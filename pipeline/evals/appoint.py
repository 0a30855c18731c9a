"""Who judges: makes the judges that are named, and keeps them apart from whoever labelled the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.chain.config import LaunchConfig, ModelConfig
from pipeline.chain.config_evaluate import EvaluateConfig, JudgeConfig
from pipeline.chain.config_sources import EngineConfig, ServerConfig
from pipeline.core.errors import ConfigError
from pipeline.engines.models import (
    check_classifier,
    check_model,
    engine_identity,
    load_classifier,
    local_engine,
    model_identity,
)
from pipeline.engines.openai import OpenAIEngine
from pipeline.evals import judges, pairs, refusal
from pipeline.evals.classifier import ClassifierJudge, GuardJudge, read_labels
from pipeline.evals.judges import Desk, EndpointJudge, Judge, ModelJudge, PatternsJudge
from pipeline.evals.pairs import EndpointPairJudge, ModelPairJudge, PairJudge, PatternsPairJudge


def appoint_judge(cfg: JudgeConfig, model: ModelConfig, launch: LaunchConfig, desk: Desk) -> Judge:
    if cfg.kind == "patterns":
        return PatternsJudge()
    if cfg.kind == "endpoint":
        return EndpointJudge(_server(cfg), desk)
    name = short_name(str(cfg.path))
    if cfg.kind == "classifier":
        found = load_classifier(str(cfg.path))
        if found is not None:
            return ClassifierJudge(*found, name, desk)
        return GuardJudge(local_engine(str(cfg.path), model, launch, name=name), desk)
    return ModelJudge(local_engine(str(cfg.path), model, launch, name=name), desk)


def appoint_pair_judge(cfg: JudgeConfig, model: ModelConfig, launch: LaunchConfig, desk: Desk) -> PairJudge:
    if cfg.kind == "patterns":
        return PatternsPairJudge()
    if cfg.kind == "endpoint":
        return EndpointPairJudge(_server(cfg), desk)
    return ModelPairJudge(local_engine(str(cfg.path), model, launch, name=short_name(str(cfg.path))), desk)


def _server(cfg: ServerConfig) -> OpenAIEngine:
    return OpenAIEngine(cfg)


def short_name(path: str) -> str:
    """A hub id as it is, a file or folder by its name: a report should not show where somebody keeps their files."""
    return Path(path).name if Path(path).expanduser().exists() else path


def judge_identity(cfg: JudgeConfig) -> dict[str, Any]:
    """What a judge is, for fingerprints: content and wording, not where it is kept."""
    identity = {"patterns": refusal.NAME, "kind": cfg.kind, "judge": judges.TEMPLATE, "pairs": pairs.TEMPLATE}
    return {**identity, "who": _who(cfg)}


def _who(cfg: JudgeConfig) -> str:
    if cfg.kind == "endpoint":
        return f"openai:{cfg.base_url}:{cfg.model}"
    return refusal.NAME if cfg.path is None else model_identity(cfg.path, None)


def labeller_identity(engine: EngineConfig, model: ModelConfig) -> str:
    """The model that critiqued and labelled the training data."""
    identity = engine_identity(engine)
    return model_identity(model.path, model.revision) if identity == "self" else identity


def is_shared(judge: JudgeConfig, cfg: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> bool:
    """Whether a judge labelled the training data, hence finds what it has taught, or is evaluated itself."""
    if judge.kind == "patterns":
        return False
    if judge.kind == "endpoint":  # the same server may be reached under two names; its model has one
        return engine.kind == "openai" and engine.model == judge.model
    evaluated = {model_identity(path, None) for path in cfg.checkpoints.values()}
    return _who(judge) in evaluated | {labeller_identity(engine, model)}


def check_judges(cfg: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> list[str]:
    """Refuse judges that can't judge, and those that labelled the training data unless they are trusted by name.

    Returns:
        What a reader of the report must know.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    for judge in (cfg.judge, cfg.pair_judge):
        _check_judge(judge)
        name = str(judge.path or judge.model)
        if is_shared(judge, cfg, engine, model) and judge.trust != name:
            raise ConfigError(
                f"{judge.section} is {name!r}, which {_share(cfg)}; name another judge, or set "
                f"{judge.section}.trust={name} to have it marked in the report."
            )
    return shared_judges(cfg, engine, model)


def shared_judges(cfg: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> list[str]:
    """One sentence for each judge that shares its opinion with what it judges."""
    return [
        f"{judge.section} is {short_name(str(judge.path or judge.model))!r}, which {_share(cfg)}: its numbers are no "
        "evidence."
        for judge in (cfg.judge, cfg.pair_judge)
        if is_shared(judge, cfg, engine, model)
    ]


def _share(cfg: EvaluateConfig) -> str:
    if cfg.checkpoints and cfg.run is None:
        return "is evaluated itself"
    return "also labelled the training data and would find what it taught"


def _check_judge(cfg: JudgeConfig) -> None:
    if cfg.kind == "model":
        check_model(str(cfg.path), None, f"{cfg.section}.path")
    elif cfg.kind == "classifier":
        labels = check_classifier(str(cfg.path), f"{cfg.section}.path")
        if labels is None:
            check_model(str(cfg.path), None, f"{cfg.section}.path")
        else:
            read_labels(labels)
