"""The whole configuration: one section per stage, and the settings that stages share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from pipeline import methods  # noqa: F401  (registers the methods)
from pipeline.adversary.config import AdversaryConfig, AttackConfig
from pipeline.core.distributed import LaunchConfig
from pipeline.core.settings import RUNTIME, Settings, validated
from pipeline.core.tracking import TrackingConfig
from pipeline.critique.config import CritiqueConfig
from pipeline.data.sources import DataConfig
from pipeline.engines.base import ENGINES, EngineConfig
from pipeline.engines.models import ModelConfig
from pipeline.evals.config import EvaluateConfig
from pipeline.explain.asked import ExplainConfig
from pipeline.guard.config import GuardConfig
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller, can_ask
from pipeline.methods.base import METHODS, AlignConfig
from pipeline.stages.preferences import PreferencesConfig
from pipeline.stages.reward import RewardConfig
from pipeline.stages.sft import SftConfig
from pipeline.writing.config import WriteConfig

Until = Literal[
    "write",
    "prompts",
    "critique",
    "sft",
    "adversary",
    "preferences",
    "reward",
    "align",
    "guard",
    "evaluate",
    "attack",
    "explain",
    "report",
]


class ConstitutionConfig(Settings):
    """The written constitution. Cache keys hold the parts of its text that a stage reads, and not its path."""

    path: Annotated[str, RUNTIME]
    """A YAML file, or the name of a shipped constitution."""
    max_principles: Annotated[int | None, RUNTIME] = Field(default=None, ge=1)
    """Use only this many principles, from the start of the file; null: all."""
    without: Annotated[list[str], RUNTIME] = Field(default=[])
    """The ids of principles to leave out, for example to see what one of them does."""


class Config(Settings):
    """Everything that can be set."""

    model: ModelConfig
    """The model to align."""
    data: DataConfig
    """The prompts."""
    constitution: ConstitutionConfig
    """The written constitution."""
    write: WriteConfig = WriteConfig()
    """Prompts that the critic writes."""
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
    guard: GuardConfig = GuardConfig()
    """A guard of the aligned model."""
    evaluate: EvaluateConfig
    """The evaluation."""
    attack: AttackConfig = AttackConfig()
    """Attacks that adapt, on the finished models."""
    adversary: AdversaryConfig = AdversaryConfig()
    """Attacks that are trained on, in each round after the first."""
    explain: ExplainConfig = ExplainConfig()
    """Questions about the finished run."""
    engine: Annotated[SerializeAsAny[EngineConfig], BeforeValidator(ENGINES.parse)]
    """The engine of the feedback model: written prompts, critiques, revisions and labels, where ``write.engine``,
    ``critique.engine`` and ``preferences.engine`` name no other."""
    policy_engine: Annotated[SerializeAsAny[EngineConfig], BeforeValidator(ENGINES.parse)]
    """The engine that generates replies with the models of the chain."""
    launch: LaunchConfig = LaunchConfig()
    """Where it runs, and on how many processes."""
    tracking: TrackingConfig = TrackingConfig()
    """The dashboard."""
    preset: str
    """The name of the configuration in the report."""
    seed: int = 0
    """The seed of every random draw."""
    rounds: int = Field(default=1, ge=1)
    """How often preferences and align run (and reward, if the method needs it). In each round after the first, the
    newest policy gives the replies that are compared, and training starts from it."""
    until: Annotated[Until, RUNTIME] = "report"
    """The last stage to run; of several rounds, in the last one."""
    output_dir: Annotated[str, RUNTIME] = "outputs"
    """The folder with cache/ and runs/."""
    name: Annotated[str | None, RUNTIME] = None
    """The name of the run's folder; null: a name made from the configuration."""

    def feedback_engines(self, section: Literal["write", "critique", "preferences"]) -> dict[str, EngineConfig]:
        """Field → engine of the writer, the critic or the labeller: its own, or else the common one."""
        own: EngineConfig | None = getattr(self, section).engine
        return {"engine": self.engine} if own is None else {f"{section}.engine": own}

    def feedback_engine(self, section: Literal["write", "critique", "preferences"]) -> EngineConfig:
        """The engine of the writer, the critic or the labeller."""
        return next(iter(self.feedback_engines(section).values()))

    def key(self) -> dict[str, Any]:
        """Without one round, attacks on the finished models and questions about the run, which change no model, and
        without a guard or an adversary that is off: runs from before these settings keep their names."""
        without = {"attack", "explain"} | ({"rounds"} if self.rounds == 1 else set())
        without |= {name for name in ("guard", "adversary") if not getattr(self, name).enabled}
        return {name: value for name, value in super().key().items() if name not in without}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        taken = {"", "latest", "latest-evaluation"}  # links to the latest run of each kind
        if self.name is not None and (self.name in taken or re.match(r"\.|.*/", self.name)):
            raise ValueError(f"name is {self.name!r}; give a plain folder name (and not 'latest')")
        if not self.output_dir.strip():
            raise ValueError("output_dir is empty; give a folder")
        return self

    @model_validator(mode="after")
    def _check_engines(self) -> Self:
        """Refuse an engine that can't do what the configuration needs."""
        policy = self.policy_engine
        if not policy.runs_weights:
            if policy.model_name is None:
                raise ValueError("policy_engine.prompts is 'chat', but the policy needs policy_engine.prompts=tokens")
            raise ValueError(
                f"policy_engine.kind is {policy.kind!r} with the model {policy.model_name!r}, but it must run the "
                "models of this chain; use policy_engine=hf, vllm or serve, and set no model there"
            )
        [(field, engine)] = self.feedback_engines("preferences").items()
        if self.align.reward_judge and engine.starts_a_server and self.launch.world_size > 1:
            raise ValueError(
                f"align.rewards.constitution is set with {self.launch.ranks_in_words}, so each "
                f"process would start the server of {field}.serve; start one yourself and give {field}.base_url"
            )
        single = [name for name in LABELLERS if issubclass(LABELLERS[name], ReplyLabeller)]
        labeller = self.preferences.labeller if self.preferences.asks_labeller else None
        asked: list[tuple[str, LabellerConfig | None, list[str]]] = [
            ("preferences.labeller", labeller, list(LABELLERS)),
            ("align.judge", self.align.reward_judge, single),
        ]
        for section, labeller, known in asked:
            if labeller and not can_ask(labeller, engine):
                others = [name for name in known if not LABELLERS[name].needs_reply_scores]
                raise ValueError(
                    f"{section}.kind is {labeller.kind!r} but {field}.kind is {engine.kind!r}, which returns no "
                    f"log-probabilities for a given reply; use {section}.kind={' or '.join(others)}, or, with "
                    f"a server that can, {field}.prompts=tokens and {field}.scores=vllm or sglang"
                )
        return self

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        """Refuse a second round whose replies would not be those of the newest policy."""
        if self.rounds == 1:
            if self.adversary.enabled or self.until == "adversary":
                what = "adversary.enabled is true" if self.adversary.enabled else "until is 'adversary'"
                raise ValueError(
                    f"{what}, but rounds is 1, and attacks are trained on from the second round; use rounds=2"
                )
            return self
        several = f"rounds is {self.rounds}, but"
        if not METHODS[self.align.method].reads_preferences:
            raise ValueError(
                f"{several} align.method is {self.align.method!r}, which samples from the newest policy at every step; "
                "use rounds=1, or align=dpo_whole"
            )
        if self.adversary.enabled:
            return self  # each round has new prompts, whatever is compared
        if self.preferences.pairs != "sampled":
            raise ValueError(
                f"{several} preferences.pairs is {self.preferences.pairs!r}, whose replies are not all sampled from "
                "the policy; use rounds=1, or preferences.pairs=sampled"
            )
        if self.preferences.num_contrasts:
            raise ValueError(
                f"{several} preferences.num_contrasts is {self.preferences.num_contrasts}, whose replies are not "
                "sampled from the policy; use rounds=1, or preferences.num_contrasts=0"
            )
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        ranks, per_device = self.launch.world_size, self.launch.per_device_batch_size
        for name in ("sft", "reward", "align"):
            size = getattr(self, name).global_batch_size
            if size % ranks:
                raise ValueError(
                    f"{name}.global_batch_size is {size}, which {self.launch.ranks_in_words} does not divide; use a "
                    f"multiple of {ranks}"
                )
            if per_device and size // ranks % per_device:
                raise ValueError(
                    f"launch.per_device_batch_size is {per_device}, which does not divide the {size // ranks} rows of "
                    f"{name}.global_batch_size that each process trains on"
                )
        return self


def to_config(raw: dict[str, Any]) -> Config:
    """Validate the configuration that Hydra composed.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value, or values that contradict each other.
    """
    return validated(Config, raw)


def to_plain(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values."""
    return settings.model_dump(mode="json")
