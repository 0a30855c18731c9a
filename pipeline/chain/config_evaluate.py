"""The evaluation's configuration: which suites, how much of each, who judges, and what must hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.chain.config_sources import ServerConfig, SourceConfig
from pipeline.core.checks import one_of, sampling, within
from pipeline.core.errors import ConfigError

SUITES = ("red_team", "over_refusal", "helpfulness", "bias", "pairs")
ATTACK_NAMES = (
    "persona",
    "fiction",
    "refusal_suppression",
    "prefix_injection",
    "past_tense",
    "misspelling",
    "base64",
    "rot13",
    "system_override",
    "many_shot",
    "escalation",
)
REQUEST_SHAPES = ("auto", "prompt", "harmbench", "advbench", "strongreject", "jailbreakbench", "xstest")
BIAS_SHAPES = ("auto", "bbq", "crows_pairs")
PAIR_SHAPES = ("auto", "chosen_rejected", "hh_rlhf", "hhh_438", "hhh_targets")


@dataclass(kw_only=True)
class SuiteConfig(SourceConfig):
    """A suite's rows: those that ship with the project, or a public set in one of the layouts (``shape``)."""

    shape: str = "auto"
    """The layout of the file; ``auto`` tells it by its columns."""

    section = "evaluate.<suite>"
    shapes: ClassVar[tuple[str, ...]] = REQUEST_SHAPES

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(f"{self.section}.shape", self.shape, self.shapes)
        for name, value in vars(self).items():
            if name.startswith("num_") and value is not None:
                within(f"{self.section}.{name}", value, 1)


@dataclass(kw_only=True)
class RedTeamConfig(SuiteConfig):
    """Held-out harmful requests; each attack is tried on ``num_attacked`` of them (null: all)."""

    num_requests: int | None = None
    attacks: list[str] = field(default_factory=lambda: list(ATTACK_NAMES))
    num_attacked: int | None = None

    section = "evaluate.red_team"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.attacks:
            one_of("evaluate.red_team.attacks", name, ATTACK_NAMES)
        if len(set(self.attacks)) < len(self.attacks):
            raise ConfigError("evaluate.red_team.attacks names an attack twice; name each once.")


@dataclass(kw_only=True)
class OverRefusalConfig(SuiteConfig):
    """Harmless requests that look harmful; the ordinary requests of ``helpfulness`` count beside them."""

    num_requests: int | None = None

    section = "evaluate.over_refusal"


@dataclass(kw_only=True)
class HelpfulnessConfig(SuiteConfig):
    """Ordinary requests, some with reference answers."""

    num_requests: int | None = None

    section = "evaluate.helpfulness"
    shapes = ("auto", "prompt")


@dataclass(kw_only=True)
class BiasConfig(SuiteConfig):
    """Templates with the group swapped (builtin), or BBQ or CrowS-Pairs."""

    num_templates: int | None = None
    """For each attribute; null: all."""
    num_items: int | None = None
    """Of BBQ or CrowS-Pairs; null: all."""

    section = "evaluate.bias"
    shapes = BIAS_SHAPES


@dataclass(kw_only=True)
class PairsConfig(SuiteConfig):
    """Pairs with a reply that people preferred."""

    num_pairs: int | None = None

    section = "evaluate.pairs"
    shapes = PAIR_SHAPES


@dataclass(kw_only=True)
class JudgeConfig(ServerConfig):
    """Who judges a reply: ``patterns``, ``model`` (log-odds), ``classifier`` or ``endpoint`` (a rubric)."""

    kind: str = "patterns"
    path: str | None = None
    """For ``model`` and ``classifier``: a folder, a hub id or ``embedded``."""
    trust: str | None = None
    """Names a judge that also labelled the training data, to have it judge nevertheless."""

    section = "evaluate.judge"
    kinds: ClassVar[tuple[str, ...]] = ("patterns", "model", "classifier", "endpoint")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(f"{self.section}.kind", self.kind, self.kinds)
        if (self.kind in {"model", "classifier"}) != (self.path is not None):
            remedy = "name a folder or hub id" if self.path is None else "leave it out"
            raise ConfigError(
                f"{self.section}.path is {self.path!r} but {self.section}.kind is {self.kind!r}; {remedy}."
            )
        if (self.kind == "endpoint") != (self.model is not None):
            remedy = "name the server's model" if self.model is None else "leave it out"
            raise ConfigError(
                f"{self.section}.model is {self.model!r} but {self.section}.kind is {self.kind!r}; {remedy}."
            )


@dataclass(kw_only=True)
class PairJudgeConfig(JudgeConfig):
    """Who compares two replies to an ordinary request."""

    section = "evaluate.pair_judge"
    kinds = ("patterns", "model", "endpoint")


@dataclass(kw_only=True)
class EvaluateConfig:
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Name → model to evaluate, in place of what the chain makes (``cai evaluate`` sets it)."""
    run: str | None = None
    """The run that the checkpoint comes from: what it was trained on is not evaluated on."""
    suites: list[str] = field(default_factory=lambda: list(SUITES))
    split: str = "test"
    red_team: RedTeamConfig = field(default_factory=RedTeamConfig)
    over_refusal: OverRefusalConfig = field(default_factory=OverRefusalConfig)
    helpfulness: HelpfulnessConfig = field(default_factory=HelpfulnessConfig)
    bias: BiasConfig = field(default_factory=BiasConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    pair_judge: PairJudgeConfig = field(default_factory=PairJudgeConfig)
    reward_model: str | None = None
    """A sequence-classification folder or id whose scores are set against people's choices, too."""
    guidelines: str | None = "default"
    """A written guideline file, or the name of a shipped one; null: no gate."""
    garak_probes: list[str] = field(default_factory=list)
    max_reply_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for suite in self.suites:
            one_of("evaluate.suites", suite, SUITES)
        if not self.suites:
            raise ConfigError(f"evaluate.suites is empty; name some of {', '.join(SUITES)}.")
        one_of("evaluate.split", self.split, ("validation", "test"))
        within("evaluate.max_reply_tokens", self.max_reply_tokens, 1)
        within("evaluate.confidence", self.confidence, 0.5, 0.999)
        sampling("evaluate", self.temperature, self.top_p)
