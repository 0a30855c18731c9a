"""align: optimise the SFT model on soft preferences (DPO, IPO, KTO) or on rewards (PPO, RLOO, GRPO)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.chain.config_train import AlignConfig
from pipeline.core import distributed
from pipeline.core.cache import Manifest
from pipeline.core.errors import StageError
from pipeline.data.drawing import held_out_prompts, rollout_prompts
from pipeline.records import Preference, Prompt, read_records, write_records
from pipeline.stages.base import Inputs, Metrics
from pipeline.training.history import write_history

if TYPE_CHECKING:
    from pipeline.methods.alignment import RewardSources

VERSION = 1


def run(cfg: AlignConfig, inputs: Inputs, out: Path) -> Metrics:
    metrics, history = _on_rewards(cfg, inputs, out) if cfg.online else _on_pairs(cfg, inputs, out)
    if distributed.is_main():
        write_history(out, history)
    return metrics


# --- Pairs ---------------------------------------------------------------------------------------------------------


def _on_pairs(cfg: AlignConfig, inputs: Inputs, out: Path) -> tuple[Metrics, list[dict[str, float]]]:
    from pipeline.methods.dpo import train_dpo, trainable
    from pipeline.methods.kto import train_kto

    preferences = list(read_records(inputs.folders["preferences"] / "preferences.jsonl", Preference))
    setting = inputs.setting(out)
    if cfg.weights:
        from pipeline.methods.alignment import make_rewards
        from pipeline.methods.rewards import relabelled

        prompts = [preference.comparison.prompt for preference in preferences]
        preferences = relabelled(preferences, make_rewards(cfg, _sources(inputs), prompts, setting))
    rows = trainable(preferences, cfg)
    if not rows:
        raise StageError(
            f"align has no pairs to train on: none of {len(preferences)} labels is usable; lower align.min_confidence "
            f"(now {cfg.min_confidence:g}) or look at the labels in {inputs.folders['preferences']}."
        )
    train = train_kto if cfg.method == "kto" else train_dpo
    metrics, history = train(rows, str(inputs.folders["sft"] / "model"), cfg, setting)
    last = history[-1] if history else {}
    rewards = {name: last.get(name) for name in ("rewards/margins", "rewards/accuracies")}
    return {"num_pairs": len(rows), "num_left_out": len(preferences) - len(rows), **metrics, **rewards}, history


# --- Rewards -------------------------------------------------------------------------------------------------------


def _on_rewards(cfg: AlignConfig, inputs: Inputs, out: Path) -> tuple[Metrics, list[dict[str, float]]]:
    from pipeline.methods.alignment import make_rewards, train_ppo
    from pipeline.methods.online import train_online

    every_prompt = list(read_records(inputs.folders["prompts"] / "prompts.jsonl", Prompt))
    prompts = rollout_prompts(every_prompt, cfg.rollout)
    held_out = held_out_prompts(every_prompt, cfg.rollout) if cfg.method == "ppo" else []
    if distributed.is_main():
        write_records(out / "prompts.jsonl", [*prompts, *held_out])
    base_path, setting, sources = str(inputs.folders["sft"] / "model"), inputs.setting(out), _sources(inputs)
    if cfg.method == "ppo":
        metrics, history = train_ppo(prompts, held_out, base_path, cfg, sources, setting)
    else:
        rewards = make_rewards(cfg, sources, prompts, setting)
        metrics, history = train_online(prompts, base_path, cfg, rewards, setting)
    return {"num_prompts": len(prompts), **metrics}, history


def _sources(inputs: Inputs) -> RewardSources:
    from pipeline.methods.alignment import RewardSources

    folder = inputs.folders.get("reward")
    manifest = Manifest.read(folder) if folder else None
    assert inputs.preferences is not None, "the run says how it labels"
    return RewardSources(
        folder=folder,
        shares_base=manifest is not None and manifest.identity["config"]["init"] == "sft",
        constitution=inputs.constitution,
        engine=inputs.engine,
        preferences=inputs.preferences,
    )
