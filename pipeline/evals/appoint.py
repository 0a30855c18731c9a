"""Who judges: opens the judges that are named, and keeps them apart from whoever labelled the training data."""

from __future__ import annotations

from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context
from pipeline.engines.base import Engine, EngineConfig, open_engine
from pipeline.engines.models import (
    ModelConfig,
    check_classifier,
    check_model,
    load_classifier,
    model_identity,
    short_name,
)
from pipeline.engines.roles import base_weights, policy_engine
from pipeline.evals.classifier import ClassifierJudge, GuardJudge, read_labels
from pipeline.evals.config import EvaluateConfig, JudgeConfig
from pipeline.evals.judges import Desk, EndpointJudge, Judge, ModelJudge, PatternsJudge
from pipeline.evals.pairs import EndpointPairJudge, ModelPairJudge, PairJudge, PatternsPairJudge


def appoint_judge(cfg: JudgeConfig, context: Context, desk: Desk) -> Judge:
    if cfg.kind == "patterns":
        return PatternsJudge()
    if cfg.kind == "classifier":
        name = short_name(str(cfg.path))
        found = load_classifier(str(cfg.path))
        if found is not None:
            return ClassifierJudge(*found, name, desk)
        return GuardJudge(policy_engine(context, str(cfg.path), name), desk)
    engine = _engine(cfg, context)
    return ModelJudge(engine, desk) if cfg.kind == "model" else EndpointJudge(engine, desk)


def appoint_pair_judge(cfg: JudgeConfig, context: Context, desk: Desk) -> PairJudge:
    if cfg.kind == "patterns":
        return PatternsPairJudge()
    engine = _engine(cfg, context)
    return ModelPairJudge(engine, desk) if cfg.kind == "model" else EndpointPairJudge(engine, desk)


def _engine(cfg: JudgeConfig, context: Context) -> Engine:
    assert cfg.engine is not None
    return open_engine(cfg.engine, base_weights(context), context.launch)


def engine_identity(engine: EngineConfig, model: ModelConfig) -> str:
    """What answers, by content: an engine's own model, or the model that is aligned."""
    if engine.model_name is None:
        return model_identity(model.path, model.revision)
    key = engine.key()
    return str(key.get("path") or key)


def is_shared(judge: JudgeConfig, cfg: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> bool:
    """Whether a judge labelled the training data, hence finds what it has taught, or is evaluated itself."""
    if judge.kind == "patterns":
        return False
    if judge.engine is not None and judge.engine.kind == engine.kind and judge.engine.model_name == engine.model_name:
        return True  # the same server may be reached under two names; its model has one
    who = model_identity(str(judge.path), None) if judge.engine is None else engine_identity(judge.engine, model)
    evaluated = {model_identity(path, None) for path in cfg.checkpoints.values()}
    return who in evaluated | {engine_identity(engine, model)}


def check_judges(cfg: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> list[str]:
    """Refuse judges that can't judge, and those that labelled the training data unless they are trusted by name.

    Returns:
        What a reader of the report must know.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    for judge in (cfg.judge, cfg.pair_judge):
        _check_judge(judge)
        name = judge.who
        if is_shared(judge, cfg, engine, model) and judge.trust != name:
            raise ConfigError(
                f"{judge.section} is {name!r}, which {_share(cfg)}; name another judge, or set "
                f"{judge.section}.trust={name} to have it marked in the report."
            )
    return shared_judges(cfg, engine, model)


def shared_judges(cfg: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> list[str]:
    """One sentence for each judge that shares its opinion with what it judges."""
    return [
        f"{judge.section} is {short_name(judge.who)!r}, which {_share(cfg)}: its numbers are no evidence."
        for judge in (cfg.judge, cfg.pair_judge)
        if is_shared(judge, cfg, engine, model)
    ]


def _share(cfg: EvaluateConfig) -> str:
    if cfg.checkpoints and cfg.run is None:
        return "is evaluated itself"
    return "also labelled the training data and would find what it taught"


def _check_judge(cfg: JudgeConfig) -> None:
    if cfg.engine is not None:
        cfg.engine.check(f"{cfg.section}.engine")
    if cfg.kind == "classifier":
        labels = check_classifier(str(cfg.path), f"{cfg.section}.path")
        if labels is None:
            check_model(str(cfg.path), None, f"{cfg.section}.path")
        else:
            read_labels(labels)
