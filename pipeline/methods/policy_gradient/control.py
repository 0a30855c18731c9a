"""The state of a training run except weights and optimiser state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.methods.base import History
from pipeline.records import HeldOutPoint


@dataclass
class Control:
    """The training state; a checkpoint contains all of it."""

    step: int = 0
    """The next step. It also decides the prompts and the seeds."""
    kl_coefficient: float = 0.0
    num_rollbacks: int = 0
    good_step: int = 0
    """The step of the newest checkpoint whose policy was measured within bounds."""
    num_scores: int = 0
    score_sum: float = 0.0
    score_square_sum: float = 0.0
    best_step: int = 0
    best_objective: float = -math.inf
    held_out: list[dict[str, Any]] = field(default_factory=list)
    """The fields of a ``HeldOutPoint`` for each time that held-out prompts were scored."""
    best_right_step: int = 0
    """The step of the best policy by the second judge, among those within bounds."""
    best_right: float = -math.inf
    """Its share of right replies."""
    overoptimised: str = ""
    """Where the second judge first fell while the reward rose; empty if it did not."""
    stopped: str = ""
    num_calls: int = 0
    num_tokens_written: int = 0
    usage: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a server's model → the fields of its ``Usage``."""
    history: History = field(default_factory=list)

    def note_scores(self, scores: Sequence[float]) -> None:
        self.num_scores += len(scores)
        self.score_sum += math.fsum(scores)
        self.score_square_sum += math.fsum(score * score for score in scores)

    @property
    def points(self) -> list[HeldOutPoint]:
        return [HeldOutPoint(**fields) for fields in self.held_out]

    @property
    def score_std(self) -> float:
        """Standard deviation of all scores so far; 1 for fewer than two scores or if all are equal."""
        if self.num_scores < 2:
            return 1.0
        mean = self.score_sum / self.num_scores
        variance = self.score_square_sum / self.num_scores - mean * mean
        return math.sqrt(variance) if variance > 1e-12 else 1.0
