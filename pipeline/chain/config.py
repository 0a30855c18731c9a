"""The whole configuration: one section for each stage, and what several stages share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from pipeline import methods  # noqa: F401  (registers the methods)
from pipeline.core.distributed import LaunchConfig
from pipeline.core.settings import RUNTIME, Settings, validated
from pipeline.core.tracking import TrackingConfig
from pipeline.data.sources import DataConfig
from pipeline.engines.base import ENGINES, EngineConfig
from pipeline.engines.models import ModelConfig
from pipeline.evals.config import EvaluateConfig
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller
from pipeline.methods.base import METHODS, AlignConfig
from pipeline.stages.critique import CritiqueConfig
from pipeline.stages.preferences import PreferencesConfig
from pipeline.stages.reward import RewardConfig
from pipeline.stages.sft import SftConfig

Until = Literal["prompts", "critique", "sft", "preferences", "reward", "align", "evaluate", "report"]


class ConstitutionConfig(Settings):
    """The written constitution. Stages read parts of its text, so no cache key holds where it is kept."""

    path: Annotated[str, RUNTIME]
    """A YAML file, or the name of a shipped constitution."""
    max_principles: Annotated[int | None, RUNTIME] = Field(default=None, ge=1)
    """Use only the first so many principles of the file; null: all."""


class Config(Settings):
    """Everything that can be set."""

    model: ModelConfig
    """The model to align."""
    data: DataConfig
    """The prompts."""
    constitution: ConstitutionConfig
    """The written constitution."""
    critique: CritiqueConfig
    """Critique and revision."""
    sft: SftConfig
    """Supervised fine-tuning."""
    preferences: PreferencesConfig
    """Comparisons and their AI labels."""
    reward: RewardConfig
    """The reward model."""
    align: Annotated[SerializeAsAny[AlignConfig], BeforeValidator(METHODS.parse)]
    """Alignment."""
    evaluate: EvaluateConfig
    """The evaluation."""
    engine: Annotated[SerializeAsAny[EngineConfig], BeforeValidator(ENGINES.parse)]
    """Who gives the feedback: critiques, revisions and labels."""
    policy_engine: Annotated[SerializeAsAny[EngineConfig], BeforeValidator(ENGINES.parse)]
    """What runs the models of the chain when they write replies."""
    launch: LaunchConfig = LaunchConfig()
    """Where and how wide it runs."""
    tracking: TrackingConfig = TrackingConfig()
    """The dashboard."""
    preset: str
    """What the configuration calls itself in the report."""
    seed: int = 0
    """Every draw derives from it."""
    until: Annotated[Until, RUNTIME] = "report"
    """The last stage to run."""
    output_dir: Annotated[str, RUNTIME] = "outputs"
    """Where cache/ and runs/ are."""
    name: Annotated[str | None, RUNTIME] = None
    """The run's folder; null: a name that follows from the configuration."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        taken = {"", "latest", "latest-evaluation"}  # links to the last of each
        if self.name is not None and (self.name in taken or re.match(r"\.|.*/", self.name)):
            raise ValueError(f"name is {self.name!r}; give a plain folder name (and not 'latest')")
        if not self.output_dir.strip():
            raise ValueError("output_dir is empty; name a folder")
        return self

    @model_validator(mode="after")
    def _check_engines(self) -> Self:
        """Refuse an engine in a role that it can't fill."""
        policy = self.policy_engine
        if not ENGINES[policy.kind].runs_weights or policy.model_name is not None:
            able = [name for name in ENGINES if ENGINES[name].runs_weights]
            raise ValueError(
                f"policy_engine.kind is {policy.kind!r} with a model of its own, but it must run the models that the "
                f"chain makes; use policy_engine.kind={' or '.join(able)} and name no model there"
            )
        single = [name for name in LABELLERS if issubclass(LABELLERS[name], ReplyLabeller)]
        asked: list[tuple[str, LabellerConfig | None, list[str]]] = [
            ("preferences.labeller", self.preferences.labeller, list(LABELLERS)),
            ("align.judge", self.align.reward_judge, single),
        ]
        for section, labeller, known in asked:
            if (
                labeller
                and LABELLERS[labeller.kind].needs_reply_scores
                and not ENGINES[self.engine.kind].scores_replies
            ):
                others = [name for name in known if not LABELLERS[name].needs_reply_scores]
                raise ValueError(
                    f"{section}.kind is {labeller.kind!r} but engine.kind is {self.engine.kind!r}, which returns no "
                    f"log-probabilities of a given reply; use {section}.kind={' or '.join(others)}"
                )
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        ranks, per_device = self.launch.num_processes, self.launch.per_device_batch_size
        for name in ("sft", "reward", "align"):
            size = getattr(self, name).global_batch_size
            if size % ranks:
                raise ValueError(
                    f"{name}.global_batch_size is {size}, which launch.num_processes={ranks} does not divide; use a "
                    f"multiple of {ranks}"
                )
            if per_device and size // ranks % per_device:
                raise ValueError(
                    f"launch.per_device_batch_size is {per_device}, which does not divide the {size // ranks} rows of "
                    f"{name}.global_batch_size that each process trains on"
                )
        return self


def to_config(raw: dict[str, Any]) -> Config:
    """Check what Hydra composed.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value, or values that contradict each other.
    """
    return validated(Config, raw)


def to_plain(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values, for manifests, dashboards and other processes."""
    return settings.model_dump(mode="json")
