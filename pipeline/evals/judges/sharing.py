"""Judges are kept apart from whoever labelled the training data."""

from __future__ import annotations

from pipeline.core.errors import ConfigError
from pipeline.engines.base import EngineConfig
from pipeline.engines.models import ModelConfig, model_identity, short_name
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.judges.base import JudgeConfig, ModelJudgeConfig, answering_model


def is_shared(judge: JudgeConfig, config: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> bool:
    """Whether a judge labelled the training data, hence finds what it has taught, or is evaluated itself.

    Args:
        engine: what labelled the training data.
        model: the model that is aligned.
    """
    if not isinstance(judge, ModelJudgeConfig):
        return False
    asked, labelled = judge.asked(model), answering_model(engine, model)
    if (asked.kind, asked.name) == (labelled.kind, labelled.name):
        return True  # the same server may be reached at two addresses; its model has one name
    return asked.identity in {labelled.identity, *(model_identity(path, None) for path in config.checkpoints.values())}


def check_judges(config: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> list[str]:
    """Refuse judges that can't judge, and those that labelled the training data unless they are trusted by name.

    Returns:
        What a reader of the report must know.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    for field, judge in _judges(config).items():
        judge.check(field)
        if isinstance(judge, ModelJudgeConfig) and is_shared(judge, config, engine, model):
            name = judge.asked(model).name
            if judge.trust != name:
                raise ConfigError(
                    f"{field} is {name!r}, which {_sharing(config)}; name another judge, or set {field}.trust={name} "
                    "to have it marked in the report."
                )
    return shared_judges(config, engine, model)


def shared_judges(config: EvaluateConfig, engine: EngineConfig, model: ModelConfig) -> list[str]:
    """One sentence for each judge that shares its opinion with what it judges."""
    return [
        f"{field} is {short_name(judge.asked(model).name)!r}, which {_sharing(config)}: its numbers are no evidence."
        for field, judge in _judges(config).items()
        if isinstance(judge, ModelJudgeConfig) and is_shared(judge, config, engine, model)
    ]


def _judges(config: EvaluateConfig) -> dict[str, JudgeConfig]:
    return {"evaluate.judge": config.judge, "evaluate.pair_judge": config.pair_judge}


def _sharing(config: EvaluateConfig) -> str:
    if config.checkpoints and config.run is None:
        return "is evaluated itself"
    return "also labelled the training data and would find what it taught"
