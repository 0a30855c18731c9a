"""Configuration of the stage ``guard``."""

from __future__ import annotations

from pydantic import Field, field_validator

from pipeline.core.settings import Settings, not_one_of
from pipeline.evals.probe import MIN_PROMPTS
from pipeline.guard.families import FAMILIES, LEARNED


class GuardConfig(Settings):
    """A guard of the aligned model, which reads the model's own states and replaces a harmful reply by a refusal."""

    enabled: bool = False
    """Make a guard after the alignment, and evaluate the model with it beside the model alone."""
    max_false_alarms: float = Field(default=0.05, gt=0, lt=1)
    """The highest share of harmless requests on which it may fire, over requests like those of the validation split."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """How sure it must be, over the draw of the validation split, that no more are hit."""
    num_prompts: int = Field(default=200, ge=MIN_PROMPTS)
    """How many training prompts of each pool it learns from, at most; each also once under an attack."""
    families: list[str] = Field(default=LEARNED)
    """The families of attacks that it learns from; by default those that may train, by the hash of their names, so that
    the evaluation has attacks that it has not seen."""
    num_replies: int = Field(default=120, ge=0)
    """How many of these prompts the aligned model answers anew; for the others, the replies that the run compared are
    read."""
    max_reply_tokens: int = Field(default=48, ge=1)
    """The most tokens of such an answer, and of the answers to the validation prompts on which the threshold is set."""
    check_every_tokens: int = Field(default=8, ge=1)
    """The second step reads a reply each time that it has grown by so many tokens."""
    refusal: str | None = Field(default=None, min_length=1)
    """What is said in place of a reply; null: in the words of the constitution's own refusals."""

    @field_validator("families")
    @classmethod
    def _check_families(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in FAMILIES:
                raise ValueError(not_one_of("{here}", name, FAMILIES))
        return names
