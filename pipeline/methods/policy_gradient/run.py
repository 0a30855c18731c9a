"""Put together what a policy-gradient method trains with, and train."""

from __future__ import annotations

from typing import Any

from pipeline.core import distributed
from pipeline.core.stage import Context, Metrics
from pipeline.data.drawing import held_out_prompts, rollout_prompts
from pipeline.methods.base import History
from pipeline.methods.policy_gradient.actors import load_actors
from pipeline.methods.policy_gradient.loop import PPO
from pipeline.methods.rewards import make_rewards
from pipeline.records import Prompt, read_records, write_records


def train(config: Any, context: Context) -> tuple[Metrics, History]:
    every_prompt = list(read_records(context.folder("prompts") / "prompts.jsonl", Prompt))
    prompts = rollout_prompts(every_prompt, config.rollout)
    held_out = held_out_prompts(every_prompt, config.rollout) if config.method == "ppo" else []
    if distributed.is_main():
        write_records(context.out / "prompts.jsonl", [*prompts, *held_out])
    base_path = str(context.folder("sft") / "model")
    if config.method != "ppo":
        from pipeline.methods.online import train_online

        metrics, history = train_online(prompts, base_path, config, make_rewards(config, prompts, context), context)
        return {"num_prompts": len(prompts), **metrics}, history
    folder = context.folder("reward") if config.trains_reward_model else None
    shares_base = folder is not None and context.reward_init == "sft"
    actors = load_actors(base_path, context.model, folder, shares_base, config.value_from_reward, context.seed)
    rewards = make_rewards(config, [*prompts, *held_out], context, actors.reward_model)
    metrics, history = PPO(actors, rewards, prompts, held_out, config, context).train()
    actors.save(context.out)
    return {"num_prompts": len(prompts), **metrics}, history
