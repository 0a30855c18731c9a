"""Training on rewards with the tiny model, in steps that a test can look at or interrupt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.chain.compose import compose_config
from pipeline.constitution.files import find_constitution, load_constitution
from pipeline.core.stage import Context, Prepared
from pipeline.data.counterfactuals import counterfactual_sets
from pipeline.data.drawing import held_out_prompts, rollout_prompts
from pipeline.data.loading import load_prompts
from pipeline.methods.base import METHODS
from pipeline.methods.policy_gradient.actors import Actors, load_actors
from pipeline.methods.policy_gradient.base import prompts_of_step
from pipeline.methods.policy_gradient.loop import Loop
from pipeline.methods.policy_gradient.rollouts import Rollout
from pipeline.methods.rewards import WeightedSum, make_rewards
from pipeline.records import write_records
from tests.conftest import FEW_PROMPTS

TOYS = Path(__file__).parent / "toy_rewards.py"
TOY = [
    "model.precision=fp32",
    "align.rewards.reward_model=0",
    "align.rewards.toy=1",
    "align.global_batch_size=32",
    "align.rollout.num_red_team=32",
    "align.rollout.num_ordinary=16",
    "align.rollout.num_look_alike=16",
    "align.rollout.max_reply_tokens=12",
    "align.rollout.missing_eos_penalty=null",
    "align.rollout.num_held_out=12",
    "align.rollout.held_out_every_steps=4",
    "align.beta=0.01",
    "align.save_every_steps=2",
    "align.max_kl=null",
    "align.stop_on_second_judge=false",  # it calls the best reply, the empty one, broken
]
QUICK = ["align.global_batch_size=8", "align.num_epochs=0.5", "align.learning_rate=3e-3"]
STEEP = ["align.global_batch_size=8", "align.learning_rate=3e-2", "align.max_kl=0.5"]
NAMES = ("ppo", "rloo", "grpo")


def epochs(method: str, number: float) -> str:
    """So many epochs of PPO, and as many rollouts of the others, which draw four replies to each prompt."""
    return f"align.num_epochs={number if method == 'ppo' else number / 4}"


class Bench:
    """Everything that training on rewards takes, on the tiny model."""

    def __init__(self, model: Path, out: Path, *overrides: str, method: str = "ppo", toy: str = "short") -> None:
        toys = [*TOY, f"align.functions.toy={TOYS}:{toy}", f"model.path={model}"]
        self.config = compose_config([f"align={method}", *FEW_PROMPTS, *toys, *overrides])
        self.align: Any = self.config.align
        self.method: Any = METHODS[self.align.method]()
        self.base_path = str(model)
        self.everything = list(load_prompts(self.config.data).prompts)
        self.prompts = rollout_prompts(self.everything, self.align.rollout)
        self.held_out = held_out_prompts(self.everything, self.align.rollout)
        constitution = load_constitution(find_constitution("minimal"))
        self.prepared = Prepared(
            config=self.config, constitution=constitution, prompts=self.everything, stages=("align",)
        )
        self.context = Context(
            stage="align",
            reads={
                "seed": self.config.seed,
                "model": self.config.model,
                "policy_engine": self.config.policy_engine,
                "engine": self.config.engine,
                "constitution": constitution,
                "counterfactuals": counterfactual_sets(self.config.data, self.align.rollout.num_counterfactuals),
            },
            folders={"prompts": out / "prompts", "sft": out / "sft"},
            out=out,
            launch=self.config.launch,
        )
        for folder in (self.context.work, *self.context.folders.values()):
            folder.mkdir(parents=True, exist_ok=True)
        if not (out / "sft" / "model").exists():
            (out / "sft" / "model").symlink_to(model)

    def train(self) -> tuple[dict[str, Any], list[dict[str, float]]]:
        write_records(self.context.folder("prompts") / "prompts.jsonl", self.everything)
        return self.method.train(self.align, self.context)

    def rewards(self) -> WeightedSum:
        return make_rewards(self.align, [*self.prompts, *self.held_out], self.context)

    def actors(self) -> Actors:
        value: Literal["base"] | None = "base" if self.method.uses_value_model else None
        return load_actors(self.base_path, self.config.model, None, False, value, seed=0)

    def loop(self, rewards: WeightedSum | None = None) -> Loop:
        rewards = rewards or self.rewards()
        return Loop(self.method, self.actors(), rewards, self.prompts, self.held_out, self.align, self.context)

    def rollouts(self) -> list[Rollout]:
        """Those of the first step."""
        loop = self.loop()
        return loop._collector.for_training(prompts_of_step(0, self.prompts, self.align, 0), loop._control)


def weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


class PowerCutError(Exception): ...


def killed_at_call(rewards: WeightedSum, number: int) -> WeightedSum:
    """The same rewards, with the power cut at a call."""
    calls = iter(range(number))

    class Dying(WeightedSum):
        def __call__(self, *args: Any) -> Any:
            if next(calls, None) is None:
                raise PowerCutError
            return rewards(*args)

    return Dying(rewards.parts)
