"""Configuration of the stage ``write``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny

from pipeline.core.settings import Settings
from pipeline.engines.base import ENGINES, EngineConfig
from pipeline.records import POOLS, Pool, Prompt


class WriteConfig(Settings):
    """Prompts that the critic writes from few-shot examples, for training only. Off unless a number is above 0."""

    num_red_team: int = Field(default=0, ge=0)
    """Harmful requests to ask for; fewer are kept."""
    num_twins: int = Field(default=1, ge=0)
    """Harmless twins to ask for, for each harmful request that is kept."""
    num_ordinary: int = Field(default=0, ge=0)
    """Ordinary requests to ask for; fewer are kept."""
    num_per_call: int = Field(default=4, ge=1)
    """Requests to ask for in one call; a twin has a call of its own."""
    num_few_shot: int = Field(default=4, ge=1)
    """The most training prompts, or twins, that the writer is shown in one call."""
    temperature: float = Field(default=0.7, gt=0, le=5)
    """Sampling temperature."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus sampling (top-p); 1 turns it off."""
    max_prompt_tokens: int = Field(default=48, ge=1)
    """The most tokens per request; an answer may have so many for each request that it was asked for."""
    num_judged_examples: int = Field(default=6, ge=0)
    """Training prompts of each class, harmful and harmless, that the critic is shown with their answers when it judges
    a request."""
    num_calibration: int = Field(default=60, ge=2)
    """Other training prompts of each class, on which the threshold of the critic's judgement is set."""
    engine: Annotated[SerializeAsAny[EngineConfig] | None, BeforeValidator(ENGINES.parse_optional)] = None
    """The engine of the writer; null: that of ``engine``."""

    @property
    def is_on(self) -> bool:
        return bool(self.num_red_team or self.num_ordinary)

    @property
    def num_asked(self) -> dict[Pool, int]:
        """Pool → the most prompts that are written."""
        return {
            "red_team": self.num_red_team,
            "look_alike": self.num_red_team * self.num_twins,
            "ordinary": self.num_ordinary,
        }

    def stand_ins(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Copies of training prompts in place of those that will be written, so that a plan counts all that is asked
        for."""
        return [
            prompt.model_copy(update={"id": f"{prompt.id}, for a written one ({number})"})
            for pool in POOLS
            for number, prompt in enumerate(
                islice(cycle([p for p in prompts if p.pool == pool and p.split == "train"]), self.num_asked[pool])
            )
        ]
