"""Load prompts, models and rewards of a policy-gradient method, and train."""

from __future__ import annotations

from typing import Any

from pipeline.core import distributed
from pipeline.core.stage import Context, Metrics
from pipeline.data.drawing import held_out_prompts, rollout_prompts
from pipeline.methods.base import History
from pipeline.methods.policy_gradient.actors import ValueStart, load_actors
from pipeline.methods.policy_gradient.base import PolicyGradient
from pipeline.methods.policy_gradient.loop import Loop
from pipeline.methods.policy_gradient.trusted import refuse_shortcut
from pipeline.methods.rewards import make_rewards
from pipeline.records import Prompt, read_records, write_records
from pipeline.training.history import HELD_OUT


def train(method: PolicyGradient, config: Any, context: Context) -> tuple[Metrics, History]:
    """Train and save the policy to ``context.out``. Returns metrics and one dict of numbers per step."""
    every_prompt = list(read_records(context.folder("prompts") / "prompts.jsonl", Prompt))
    sets = context.counterfactuals if config.rollout.num_counterfactuals else []
    prompts = rollout_prompts(every_prompt, config.rollout, sets)
    held_out = held_out_prompts(every_prompt, config.rollout)
    if distributed.is_main():
        write_records(context.out / "prompts.jsonl", [*prompts, *held_out])
    reward = context.folder("reward") if config.trains_reward_model else None
    if reward is not None:
        refuse_shortcut(reward, config.trust)
    shares_base = reward is not None and context.reward_init == "sft"
    value: ValueStart | None = None
    if method.uses_value_model:
        value = "reward" if config.value_from_reward else "base"
    base_path = str(context.folder("sft") / "model")
    actors = load_actors(base_path, context.model, reward, shares_base, value, context.seed)
    rewards = make_rewards(config, [*prompts, *held_out], context, actors.reward_model)
    metrics, history, points = Loop(method, actors, rewards, prompts, held_out, config, context).train()
    if distributed.is_main():
        write_records(context.out / HELD_OUT, points)
    actors.save(context.out)
    return {"num_prompts": len(prompts), **metrics}, history
