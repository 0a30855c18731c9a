"""Checks that no judge is a model that wrote or labelled the training data, or is evaluated itself."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.errors import ConfigError
from pipeline.engines.base import EngineConfig
from pipeline.engines.models import ModelConfig, model_identity, short_name
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.judges.base import JudgeConfig, ModelJudgeConfig, answering_model


def is_shared(judge: JudgeConfig, config: EvaluateConfig, teachers: Sequence[EngineConfig], model: ModelConfig) -> bool:
    """Whether the model of a judge also wrote or labelled the training data, or is evaluated itself.

    Args:
        teachers: the engines that wrote or labelled the training data.
        model: the model that is aligned.
    """
    if not isinstance(judge, ModelJudgeConfig):
        return False
    asked, taught = judge.asked(model), [answering_model(engine, model) for engine in teachers]
    same_name = [teacher for teacher in taught if teacher.name == asked.name]
    if any(teacher.kind == asked.kind or "/" in asked.name for teacher in same_name):
        return True  # the same model, even if it runs in another way: a hub id means one model everywhere
    evaluated = {model_identity(path, None) for path in config.checkpoints.values()}
    return asked.identity in {*(teacher.identity for teacher in taught), *evaluated}


def check_judges(config: EvaluateConfig, teachers: Sequence[EngineConfig], model: ModelConfig) -> list[str]:
    """Check that the judges can be used and do not judge their own work, unless ``trust`` names them.

    Returns:
        Notes for the report (``shared_judges``).

    Raises:
        ConfigError: the check failed; the message names the setting and the fix.
    """
    for field, judge in _judges(config).items():
        judge.check(field)
        if isinstance(judge, ModelJudgeConfig) and is_shared(judge, config, teachers, model):
            name = judge.asked(model).name
            if judge.trust != name:
                raise ConfigError(
                    f"{field} is {name!r}, which {_sharing(config)}; name another judge, or set {field}.trust={name} "
                    "to use it and mark its numbers in the report."
                )
    return shared_judges(config, teachers, model)


def shared_judges(config: EvaluateConfig, teachers: Sequence[EngineConfig], model: ModelConfig) -> list[str]:
    """One note for each judge that also wrote or labelled the training data, or is evaluated itself."""
    return [
        f"{field} is {short_name(judge.asked(model).name)!r}, which {_sharing(config)}: "
        "do not use its numbers as evidence."
        for field, judge in _judges(config).items()
        if isinstance(judge, ModelJudgeConfig) and is_shared(judge, config, teachers, model)
    ]


def _judges(config: EvaluateConfig) -> dict[str, JudgeConfig]:
    return {"evaluate.judge": config.judge, "evaluate.pair_judge": config.pair_judge}


def _sharing(config: EvaluateConfig) -> str:
    if config.checkpoints and config.run is None:
        return "is evaluated itself"
    return "also wrote or labelled the training data and would judge its own work"
