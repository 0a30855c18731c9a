"""PPO, RLOO and GRPO on a tiny model: they reach a known optimum, and so does a method that is added."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pytest
import torch

from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.base import PolicyGradient
from pipeline.methods.policy_gradient.config import PolicyGradientConfig
from pipeline.methods.policy_gradient.rollouts import RolloutTensors
from tests.ppo_bench import Bench

# --- A known optimum -----------------------------------------------------------------------------------------------

TO_THE_OPTIMUM = {
    "ppo": ["align.num_epochs=6", "align.learning_rate=5e-3", "align.value_learning_rate=5e-3"],
    "ppo, full": [
        "model.tuning=full",
        "align.num_epochs=6",
        "align.learning_rate=1e-3",
        "align.value_learning_rate=1e-3",
    ],
    "rloo": ["align.num_epochs=1.25", "align.learning_rate=1e-2"],
    "grpo": ["align.num_epochs=1.25", "align.learning_rate=1e-2"],
    "grpo, full": ["model.tuning=full", "align.num_epochs=1.25", "align.learning_rate=1e-3"],
}


@pytest.mark.parametrize("name", TO_THE_OPTIMUM)
def test_the_shortest_reply_is_found(tiny_model: Path, tmp_path: Path, name: str):
    """Replies have two words at first; the best have none. All methods start from the same model."""
    metrics, history = Bench(tiny_model, tmp_path, *TO_THE_OPTIMUM[name], method=name.partition(",")[0]).train()
    scores = [row["objective/scores"] for row in history]
    assert metrics["score_first"] < -1.5
    assert fmean(scores[-3:]) > -0.25
    assert (tmp_path / "model" / "model.safetensors").exists()


# --- Adding a method -----------------------------------------------------------------------------------------------


class AboveTheMean(PolicyGradient):
    """REINFORCE with the batch's mean as its baseline."""

    name = "above_the_mean"

    class Config(PolicyGradientConfig):
        """No more than the loop sets."""

        method: Literal["above_the_mean"] = "above_the_mean"
        """It."""

    def advantages(self, drawn: RolloutTensors, config: Any) -> tuple[torch.Tensor, None]:
        return (drawn.scores - drawn.scores.mean())[:, None] * drawn.mask, None


def test_a_method_is_one_class(tiny_model: Path, tmp_path: Path):
    METHODS.add(AboveTheMean)
    try:
        metrics, history = Bench(
            tiny_model, tmp_path, "align.method=above_the_mean", "align.num_epochs=5", "align.learning_rate=5e-3"
        ).train()
    finally:
        METHODS.remove("above_the_mean")
    assert metrics["score_first"] < -1.5 and fmean(row["objective/scores"] for row in history[-3:]) > -0.5
