"""Settings of the evaluation: suites, judges, generation and guidelines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from pipeline.core.settings import RUNTIME, Settings, fields_of, is_runtime, not_one_of, with_sections
from pipeline.engines.models import model_identity
from pipeline.evals.judges.base import JUDGES, PAIR_JUDGES, JudgeConfig
from pipeline.evals.judges.patterns import PatternsJudge, PatternsPairJudge
from pipeline.evals.probe import ProbeConfig
from pipeline.evals.suites.base import SUITES, Suite


class EvaluateConfig(Settings):
    """The evaluation. Each suite also has a section with its name."""

    model_config = ConfigDict(extra="allow")
    sections = SUITES

    checkpoints: dict[str, str] = Field(default={})
    """Name → model to evaluate, instead of the models of the chain (``cai evaluate`` sets it)."""
    run: Annotated[str | None, RUNTIME] = None
    """The run that made the checkpoint; the suites must not contain its training prompts."""
    suites: list[str] = Field(default_factory=lambda: list(SUITES), min_length=1)
    """The suites to run."""
    split: Literal["validation", "test"] = "test"
    """The split of the run's own prompts that the built-in suites include."""
    judge: Annotated[SerializeAsAny[JudgeConfig], BeforeValidator(JUDGES.parse)] = PatternsJudge.Config()
    """The judge of single replies."""
    pair_judge: Annotated[SerializeAsAny[JudgeConfig], BeforeValidator(PAIR_JUDGES.parse)] = PatternsPairJudge.Config()
    """The judge that compares two replies."""
    num_labelled_replies: int | None = Field(default=None, ge=1)
    """How many of the 420 replies that people labelled the judge is tested on; null: all. A judge that asks a model
    needs one call for each."""
    reward_model: str | None = None
    """A folder or hub id of a reward model, which is tested on the pairs that people decided; null: none."""
    guidelines: Annotated[str | None, RUNTIME] = "default"
    """A guideline file, or the name of a built-in one; null: no gate. The report stage reads it."""
    garak_probes: list[str] = Field(default=[])
    """The probes of garak to run on the last model."""
    probe: ProbeConfig = ProbeConfig()
    """The card ``knows / does``."""
    max_reply_tokens: int = Field(default=64, ge=1)
    """The maximum number of tokens per reply."""
    temperature: float = Field(default=0.0, ge=0, le=5)
    """Sampling temperature of the replies; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling of the replies; 1 switches it off."""
    confidence: float = Field(default=0.95, ge=0.5, le=0.999)
    """The confidence level of every interval."""

    @model_validator(mode="before")
    @classmethod
    def _read_sections(cls, raw: Any) -> Any:
        """Parse the section of each suite with the class of the suite; unknown keys are errors."""
        return with_sections(cls, raw)

    @field_validator("suites")
    @classmethod
    def _check_suites(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in SUITES:
                raise ValueError(not_one_of("{here}", name, SUITES))
        return names

    def suite(self, name: str) -> Suite:
        return SUITES[name](getattr(self, name))

    @property
    def selected(self) -> list[Suite]:
        return [self.suite(name) for name in SUITES if name in self.suites]

    def counting(self, name: str) -> list[str]:
        """The selected suites that count the cases of suite ``name``. If there is none, its cases are not used."""
        return [suite.name for suite in self.selected if name in (suite.name, *suite.counts_too)]

    def key(self) -> dict[str, Any]:
        """Leaves out the sections of suites whose cases are not used."""
        names = [name for name in fields_of(self) if name not in SUITES or self.counting(name)]
        return {name: self.key_of(name) for name in names if not is_runtime(type(self), name)}

    def key_of(self, name: str) -> Any:
        """Models are identified by their content."""
        if name == "suites":
            return sorted(set(self.suites))
        if name == "checkpoints":
            return {key: model_identity(path, None) for key, path in self.checkpoints.items()}
        if name == "reward_model":
            return self.reward_model and model_identity(self.reward_model, None)
        return super().key_of(name)
