"""The evaluation's settings: which suites, how much of each, who judges, and what must hold."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from pipeline.core.settings import RUNTIME, Settings, not_one_of
from pipeline.data.sources import SourceConfig
from pipeline.engines.base import ENGINES, EngineConfig
from pipeline.engines.models import model_identity

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


class SuiteConfig(SourceConfig):
    """A suite's rows: those that ship with the project, or a public set in one of the layouts (``shape``)."""

    shape: str = "auto"
    """The layout of the file; ``auto`` tells it by its columns."""

    section: ClassVar[str] = ""
    shapes: ClassVar[tuple[str, ...]] = REQUEST_SHAPES

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.shape not in self.shapes:
            raise ValueError(not_one_of("{here}.shape", self.shape, self.shapes))
        return self


class RedTeamConfig(SuiteConfig):
    """Held-out harmful requests; each attack is tried on ``num_attacked`` of them (null: all)."""

    num_requests: int | None = Field(default=None, ge=1)
    """Requests put plainly; null: all."""
    attacks: list[Literal[ATTACK_NAMES]] = Field(default=list(ATTACK_NAMES))  # type: ignore[valid-type]
    """The attacks."""
    num_attacked: int | None = Field(default=None, ge=1)
    """Requests put under each attack; null: all."""

    section = "evaluate.red_team"

    @model_validator(mode="after")
    def _check_attacks(self) -> Self:
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError("{here}.attacks names an attack twice; name each once")
        return self


class OverRefusalConfig(SuiteConfig):
    """Harmless requests that look harmful; the ordinary requests of ``helpfulness`` count beside them."""

    num_requests: int | None = Field(default=None, ge=1)
    """Requests; null: all."""

    section = "evaluate.over_refusal"


class HelpfulnessConfig(SuiteConfig):
    """Ordinary requests, some with reference answers."""

    num_requests: int | None = Field(default=None, ge=1)
    """Requests; null: all."""

    section = "evaluate.helpfulness"
    shapes = ("auto", "prompt")


class BiasConfig(SuiteConfig):
    """Templates with the group swapped (builtin), or BBQ or CrowS-Pairs."""

    num_templates: int | None = Field(default=None, ge=1)
    """Templates for each attribute; null: all."""
    num_items: int | None = Field(default=None, ge=1)
    """Items of BBQ or CrowS-Pairs; null: all."""

    section = "evaluate.bias"
    shapes = BIAS_SHAPES


class PairsConfig(SuiteConfig):
    """Pairs with a reply that people preferred."""

    num_pairs: int | None = Field(default=None, ge=1)
    """Pairs; null: all."""

    section: ClassVar[str] = "evaluate.pairs"
    shapes = PAIR_SHAPES


class HumanPairsConfig(PairsConfig):
    """Comparisons that people decided, for training a reward model: none, or a file or hub set in any layout that
    ``evaluate.pairs`` reads."""

    source: Literal["none", "path", "hub"] = "none"  # type: ignore[assignment]
    """``none``, ``path`` (a file or folder) or ``hub``."""

    section = "reward.human"


class JudgeConfig(Settings):
    """Who judges a reply."""

    kind: Literal["patterns", "model", "classifier", "endpoint"] = "patterns"
    """``patterns`` (its words), ``model`` (log-odds), ``classifier``, or ``endpoint`` (a rubric put to a model)."""
    path: str | None = None
    """``classifier``: a folder or hub id."""
    engine: Annotated[SerializeAsAny[EngineConfig] | None, BeforeValidator(ENGINES.parse_optional)] = None
    """``model`` and ``endpoint``: the engine that answers."""
    trust: Annotated[str | None, RUNTIME] = None
    """Names a judge that also labelled the training data, to have it judge nevertheless."""

    section: ClassVar[str] = "evaluate.judge"

    @model_validator(mode="after")
    def _check_who(self) -> Self:
        if (self.kind == "classifier") != (self.path is not None):
            remedy = "name a folder or hub id" if self.path is None else "leave it out"
            raise ValueError(f"{{here}}.path is {self.path!r} but {{here}}.kind is {self.kind!r}; {remedy}")
        if (self.kind in {"model", "endpoint"}) != (self.engine is not None):
            remedy = "name an engine" if self.engine is None else "leave it out"
            raise ValueError(f"{{here}}.engine is not for {{here}}.kind={self.kind}; {remedy}")
        return self

    def key_of(self, name: str) -> Any:
        return model_identity(self.path, None) if name == "path" and self.path else super().key_of(name)

    @property
    def who(self) -> str:
        """What the judge's model is called."""
        return str(self.path or (self.engine and self.engine.model_name))


class PairJudgeConfig(JudgeConfig):
    """Who compares two replies to an ordinary request."""

    kind: Literal["patterns", "model", "endpoint"] = "patterns"
    """``patterns``, ``model`` (log-odds) or ``endpoint`` (a rubric put to a model)."""

    section = "evaluate.pair_judge"


class EvaluateConfig(Settings):
    """The evaluation."""

    checkpoints: dict[str, str] = Field(default={})
    """Name → model to evaluate, in place of what the chain makes (``cai evaluate`` sets it)."""
    run: Annotated[str | None, RUNTIME] = None
    """The run that the checkpoint comes from: what it was trained on is not evaluated on."""
    suites: list[Literal["red_team", "over_refusal", "helpfulness", "bias", "pairs"]] = Field(
        default=["red_team", "over_refusal", "helpfulness", "bias", "pairs"], min_length=1
    )
    """The suites to run."""
    split: Literal["validation", "test"] = "test"
    """The split of the run's own prompts that the shipped suites include."""
    red_team: RedTeamConfig = RedTeamConfig()
    """Harmful requests, plainly and under attack."""
    over_refusal: OverRefusalConfig = OverRefusalConfig()
    """Harmless requests that look harmful."""
    helpfulness: HelpfulnessConfig = HelpfulnessConfig()
    """Ordinary requests."""
    bias: BiasConfig = BiasConfig()
    """The same request about different groups."""
    pairs: PairsConfig = PairsConfig()
    """Pairs that people decided."""
    judge: JudgeConfig = JudgeConfig()
    """Who judges a reply."""
    pair_judge: PairJudgeConfig = PairJudgeConfig()
    """Who compares two replies."""
    reward_model: str | None = None
    """A sequence-classification folder or id whose scores are compared with people's choices, too."""
    guidelines: Annotated[str | None, RUNTIME] = "default"
    """A written guideline file, or the name of a shipped one; null: no gate. The report stage reads it."""
    garak_probes: list[str] = Field(default=[])
    """garak's probes to run against the last model."""
    max_reply_tokens: int = Field(default=64, ge=1)
    """The most tokens of a reply."""
    temperature: float = Field(default=0.0, ge=0, le=5)
    """Temperature of the replies; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the replies; 1 switches it off."""
    confidence: float = Field(default=0.95, ge=0.5, le=0.999)
    """Of every interval."""

    def key_of(self, name: str) -> Any:
        """Models and suites by content."""
        from pipeline.evals.cases import suite_content

        if name == "checkpoints":
            return {key: model_identity(path, None) for key, path in self.checkpoints.items()}
        if name == "reward_model":
            return self.reward_model and model_identity(self.reward_model, None)
        value = getattr(self, name)
        return (
            {**value.key(), "content": suite_content(value)} if isinstance(value, SuiteConfig) else super().key_of(name)
        )
