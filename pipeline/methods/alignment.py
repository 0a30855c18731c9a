"""Everything that the online methods train with, put together from the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.chain.config import PreferencesConfig
from pipeline.chain.config_sources import EngineConfig
from pipeline.chain.config_train import CONSTITUTION, REWARD_MODEL, AlignConfig
from pipeline.constitution.schema import Constitution
from pipeline.core.user_functions import load_function
from pipeline.engines.models import feedback_engine
from pipeline.engines.reward_model import RewardModel, load_reward_model, scoring_precision
from pipeline.methods.policy_gradient.actors import load_actors
from pipeline.methods.rewards import ConstitutionReward, RewardFunction, WeightedSum
from pipeline.records import Prompt
from pipeline.training.setting import Setting


@dataclass(frozen=True, kw_only=True)
class RewardSources:
    """Where rewards come from."""

    folder: Path | None
    """The reward stage's, where the method wants its model."""
    shares_base: bool
    """Whether that model was trained from the SFT model."""
    constitution: Constitution
    engine: EngineConfig
    preferences: PreferencesConfig


def make_rewards(
    config: AlignConfig,
    sources: RewardSources,
    prompts: Sequence[Prompt],
    setting: Setting,
    reward_model: RewardModel | None = None,
) -> WeightedSum:
    """The weighted sum that the configuration names.

    Args:
        prompts: all that will be asked.
        reward_model: the reward stage's, where it is in memory already.
    """

    def function(name: str) -> RewardFunction:
        if name == REWARD_MODEL:
            path = config.reward_model or str(_folder(sources) / "model")
            return (reward_model or load_reward_model(path, dtype=scoring_precision(setting.model.precision))).score
        if name == CONSTITUTION:
            judge = replace(sources.preferences, labeller=config.judge)
            engine = feedback_engine(sources.engine, setting.model, setting.launch, policy=None)
            return ConstitutionReward(engine, judge, sources.constitution, prompts, setting.seed)
        return load_function(config.functions[name], f"align.functions.{name}")

    return WeightedSum({name: (weight, function(name)) for name, weight in config.weights.items()})


def _folder(sources: RewardSources) -> Path:
    assert sources.folder is not None, "the chain makes the reward model that the method wants"
    return sources.folder


def train_ppo(
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    base_path: str,
    config: AlignConfig,
    sources: RewardSources,
    setting: Setting,
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Align the SFT model at ``base_path``, which is also the reference, and save it. Returns metrics and history."""
    from pipeline.methods.policy_gradient.loop import PPO

    folder = sources.folder if config.wants_reward_stage else None
    actors = load_actors(
        base_path, setting.model, folder, sources.shares_base, config.ppo.value_from_reward, setting.seed
    )
    rewards = make_rewards(config, sources, [*prompts, *held_out], setting, actors.reward_model)
    metrics, history = PPO(actors, rewards, prompts, held_out, config, setting).train()
    actors.save(setting.out)
    return metrics, history
