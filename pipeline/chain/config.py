"""Typed configuration: one dataclass a stage, checked as soon as it is built.

A stage's own section is part of its fingerprint. ``launch``, ``tracking``, ``output_dir``, ``name`` and ``until`` say
where and how a run happens, never what it means, and are part of no fingerprint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.chain.config_evaluate import EvaluateConfig
from pipeline.chain.config_sources import DataConfig, EngineConfig
from pipeline.chain.config_train import CONSTITUTION, AlignConfig, RewardConfig, SftConfig
from pipeline.core.checks import one_of, sampling, within
from pipeline.core.errors import ConfigError, did_you_mean

CHAIN = ("prompts", "critique", "sft", "preferences", "reward", "align", "evaluate", "report")


@dataclass(kw_only=True)
class LoraConfig:
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str = "all-linear"
    upper_share: float = 1.0
    """Share of the layers that are adapted, counted from the top: what lies below is read without gradients."""

    def __post_init__(self) -> None:
        within("model.lora.upper_share", self.upper_share, 0.01, 1)
        within("model.lora.rank", self.rank, 1)
        within("model.lora.alpha", self.alpha, 1)
        within("model.lora.dropout", self.dropout, 0, 1)


@dataclass(kw_only=True)
class ModelConfig:
    """The model to align: ``embedded`` (SmolLM2-135M-Instruct from its wheel), a hub id, or a folder."""

    name: str
    path: str
    revision: str | None = None
    tuning: str = "lora"
    precision: str = "auto"
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        one_of("model.tuning", self.tuning, ("lora", "full", "qlora"))
        one_of("model.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(f"model.name is {self.name!r}; use letters, digits, '-', '_' and '.' (it names folders).")
        if not self.path.strip():
            raise ConfigError("model.path is empty; give a folder, a hub id or 'embedded'.")


@dataclass(kw_only=True)
class ConstitutionConfig:
    path: str
    max_principles: int | None = None
    """Use only the first so many principles of the file; null uses all."""

    def __post_init__(self) -> None:
        if self.max_principles is not None:
            within("constitution.max_principles", self.max_principles, 1)


@dataclass(kw_only=True)
class CritiqueConfig:
    num_rounds: int
    num_red_team: int
    num_ordinary: int
    num_look_alike: int
    num_few_shot: int
    temperature: float
    top_p: float
    max_reply_tokens: int
    max_critique_tokens: int
    max_revision_tokens: int

    def __post_init__(self) -> None:
        within("critique.num_rounds", self.num_rounds, 1)
        within("critique.num_red_team", self.num_red_team, 1)
        within("critique.num_ordinary", self.num_ordinary, 0)
        within("critique.num_look_alike", self.num_look_alike, 0)
        within("critique.num_few_shot", self.num_few_shot, 0)
        sampling("critique", self.temperature, self.top_p)
        for name in ("max_reply_tokens", "max_critique_tokens", "max_revision_tokens"):
            within(f"critique.{name}", getattr(self, name), 1)


@dataclass(kw_only=True)
class PreferencesConfig:
    labeller: str
    num_principles: int
    pairs: str
    """``contrast``: a reply that declines beside one of the base model's. ``sampled``: two of the SFT model's."""
    num_examples: int
    """``likelihood``: worked examples shown on either side."""
    num_contrasts: int
    """How many of the constitution's contrasts to take in as pairs whose label is written."""
    num_red_team: int
    num_ordinary: int
    num_look_alike: int
    temperature: float
    top_p: float
    max_reply_tokens: int
    logit_scale: float = 1.0
    min_answer_mass: float = 0.01
    max_reasoning_tokens: int = 96
    clamp_low: float = 0.4
    clamp_high: float = 0.6

    def __post_init__(self) -> None:
        one_of("preferences.pairs", self.pairs, ("contrast", "sampled"))
        within("preferences.num_examples", self.num_examples, 0)
        within("preferences.num_contrasts", self.num_contrasts, 0)
        one_of("preferences.labeller", self.labeller, ("ab", "likelihood", "pointwise", "cot"))
        within("preferences.num_principles", self.num_principles, 1)
        for pool in ("num_red_team", "num_ordinary", "num_look_alike"):
            within(f"preferences.{pool}", getattr(self, pool), 0)
        if self.num_red_team + self.num_ordinary + self.num_look_alike == 0:
            raise ConfigError("preferences.num_red_team, num_ordinary and num_look_alike are all 0; label some pairs.")
        for name in ("max_reply_tokens", "max_reasoning_tokens"):
            within(f"preferences.{name}", getattr(self, name), 1)
        if self.logit_scale <= 0:
            raise ConfigError(f"preferences.logit_scale is {self.logit_scale:g}; it must be above 0.")
        within("preferences.min_answer_mass", self.min_answer_mass, 0, 1)
        sampling("preferences", self.temperature, self.top_p)
        if self.temperature == 0:
            raise ConfigError("preferences.temperature is 0, so both replies would be the same; set it above 0.")
        if not 0 <= self.clamp_low <= 0.5 <= self.clamp_high <= 1:
            raise ConfigError(
                f"preferences.clamp_low is {self.clamp_low:g} and preferences.clamp_high {self.clamp_high:g}; "
                "they must lie on either side of 0.5."
            )


@dataclass(kw_only=True)
class ReportConfig:
    num_transcripts: int = 12

    def __post_init__(self) -> None:
        within("report.num_transcripts", self.num_transcripts, 1)


@dataclass(kw_only=True)
class LaunchConfig:
    """Where and how wide: nothing here changes what a stage means."""

    num_processes: int = 1
    batch_rows: int | None = None
    per_device_batch_size: int | None = None
    gradient_checkpointing: bool | None = None

    def __post_init__(self) -> None:
        within("launch.num_processes", self.num_processes, 1)
        for name in ("batch_rows", "per_device_batch_size"):
            if (value := getattr(self, name)) is not None:
                within(f"launch.{name}", value, 1)


@dataclass(kw_only=True)
class TrackingConfig:
    kind: str = "wandb"
    project: str = "cai"
    entity: str | None = None
    mode: str = "auto"

    def __post_init__(self) -> None:
        one_of("tracking.kind", self.kind, ("wandb", "trackio", "tensorboard", "none"))
        one_of("tracking.mode", self.mode, ("auto", "online", "offline"))


@dataclass(kw_only=True)
class Config:
    model: ModelConfig
    data: DataConfig
    constitution: ConstitutionConfig
    critique: CritiqueConfig
    sft: SftConfig
    preferences: PreferencesConfig
    reward: RewardConfig
    align: AlignConfig
    evaluate: EvaluateConfig
    report: ReportConfig
    engine: EngineConfig
    launch: LaunchConfig
    tracking: TrackingConfig
    preset: str
    seed: int
    until: str
    output_dir: str
    name: str | None = None

    def __post_init__(self) -> None:
        one_of("until", self.until, CHAIN)
        taken = {"", "latest", "latest-evaluation"}  # links to the last of each
        if self.name is not None and (self.name in taken or "/" in self.name or self.name.startswith(".")):
            raise ConfigError(f"name is {self.name!r}; give a plain folder name (and not 'latest').")
        if not self.output_dir.strip():
            raise ConfigError("output_dir is empty; name a folder.")
        if self.engine.kind == "openai" and self.preferences.labeller == "likelihood":
            raise ConfigError(
                "preferences.labeller is 'likelihood' but engine.kind is 'openai', and chat servers return no "
                "log-probabilities of a given reply; use preferences=ab, pointwise or cot."
            )
        if self.engine.kind == "openai" and CONSTITUTION in self.align.weights and self.align.judge == "likelihood":
            raise ConfigError(
                "align.judge is 'likelihood' but engine.kind is 'openai', and chat servers return no log-probabilities "
                "of a given reply; use align.judge=pointwise."
            )
        for section in (self.sft, self.reward, self.align):
            ranks = self.launch.num_processes
            if section.global_batch_size % ranks:
                raise ConfigError(
                    f"{section.section}.global_batch_size is {section.global_batch_size}, which launch.num_processes="
                    f"{ranks} does not divide; use a multiple of {ranks}."
                )
            share = section.global_batch_size // ranks
            per_device = self.launch.per_device_batch_size
            if per_device and share % per_device:
                raise ConfigError(
                    f"launch.per_device_batch_size is {per_device}, which does not divide the {share} rows of "
                    f"{section.section}.global_batch_size that fall to each process."
                )


def to_config(composed: DictConfig) -> Config:
    """Turn what Hydra composed into checked dataclasses.

    Raises:
        ConfigError: unknown key, wrong type, missing value, or values that contradict each other.
    """
    _refuse_unknown(composed, Config, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), composed)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_sentence(error)) from None
    assert isinstance(config, Config)
    return config


def _refuse_unknown(node: DictConfig, kind: type, prefix: str) -> None:
    """Hydra lets ``+key=value`` add anything; a key that no dataclass has would be ignored without a word."""
    known = get_type_hints(kind)
    for key in map(str, node):
        if key not in known:
            raise ConfigError(f"{prefix}{key}: unknown key{did_you_mean(key, known)}.")
        if is_dataclass(known[key]):
            part = node[key]
            if not isinstance(part, DictConfig):
                raise ConfigError(f"{prefix}{key} is {part!r}, but it is a section; set {prefix}{key}.KEY=VALUE.")
            _refuse_unknown(part, known[key], f"{prefix}{key}.")


def _sentence(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or "configuration"
    problem = str(getattr(error, "msg", None) or error).splitlines()[0]
    owner = getattr(error, "object_type", None)
    if "not in" in problem and owner is not None and hasattr(owner, "__dataclass_fields__"):
        return f"{key}: unknown key{did_you_mean(str(key).split('.')[-1], (f.name for f in fields(owner)))}."
    return f"{key}: {problem.rstrip('.')}."


def to_plain(section: Any) -> dict[str, Any]:
    """A dataclass section as plain JSON values, for fingerprints, manifests and dashboards."""
    plain = OmegaConf.to_container(OmegaConf.structured(section), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
