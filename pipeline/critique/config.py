"""Configuration of critique and revision."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny

from pipeline.data.drawing import PoolSizes
from pipeline.engines.base import ENGINES, EngineConfig


class CritiqueConfig(PoolSizes):
    """Critique and revision (Bai et al. 2022, section 3)."""

    num_rounds: int = Field(ge=1)
    """Rounds of critique and revision, each under a new principle."""
    num_red_team: int = Field(ge=1)
    """Harmful requests."""
    num_few_shot: int = Field(ge=0)
    """The most worked examples of the constitution in the critic's prompt."""
    temperature: float = Field(ge=0, le=5)
    """Sampling temperature of replies, critiques and revisions; 0 is greedy."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus sampling (top-p) of replies, critiques and revisions; 1 turns it off."""
    max_reply_tokens: int = Field(ge=1)
    """The most tokens per first reply."""
    max_critique_tokens: int = Field(ge=1)
    """The most tokens per critique."""
    max_revision_tokens: int = Field(ge=1)
    """The most tokens per revision."""
    engine: Annotated[SerializeAsAny[EngineConfig] | None, BeforeValidator(ENGINES.parse_optional)] = None
    """The engine of the critic; null: that of ``engine``."""
