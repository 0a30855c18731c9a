"""RLOO and GRPO through TRL, on the prompts and rewards of PPO: a group's other replies take the critic's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from pipeline.chat import Renderer
from pipeline.core.stage import Context
from pipeline.methods.rewards import RewardFunction, WeightedSum, checked
from pipeline.records import Prompt
from pipeline.training.loop import Quiet, Reporter, train, training_arguments, whole_batches
from pipeline.training.models import load_policy, lora_config, save_checkpoint

# TRL's names, and the ones that PPO uses for the same numbers.
NAMES = {
    "reward": "objective/scores",
    "kl": "objective/kl_per_token",
    "entropy": "objective/token_entropy",
    "completions/mean_length": "reply_tokens_mean",
    "completions/clipped_ratio": "truncated_rate",
}


class QuietRLOOTrainer(Quiet, RLOOTrainer): ...


class QuietGRPOTrainer(Quiet, GRPOTrainer): ...


def for_trl(name: str, function: RewardFunction) -> Callable[..., list[float]]:
    """A reward as TRL calls it: conversational completions, and more keywords than we need."""

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        return checked(name, function, prompts, [turns[0]["content"].strip() for turns in completions])

    reward.__name__ = name
    return reward


def missing_eos(penalty: float, eos_token_ids: set[int]) -> Callable[..., list[float]]:
    """−penalty for a reply that was cut off at its limit."""

    def truncated(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [0.0 if set(tokens[-1:]) & eos_token_ids else -penalty for tokens in completion_ids]

    return truncated


def train_online(
    prompts: Sequence[Prompt], base_path: str, config: Any, rewards: WeightedSum, context: Context
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Align the SFT model at ``base_path``, which is also the reference. Returns metrics and the log history."""
    model, tokenizer = load_policy(base_path, context.model)
    reporter = Reporter(f"aligning ({config.method})", context.tracker, NAMES)
    rollout, chat = config.rollout, Renderer(tokenizer)
    functions = [for_trl(name, function) for name, (_, function) in rewards.parts.items()]
    weights = [weight for weight, _ in rewards.parts.values()]
    if rollout.missing_eos_penalty:
        eos = model.generation_config.eos_token_id
        functions.append(missing_eos(rollout.missing_eos_penalty, set(eos if isinstance(eos, list) else [eos])))
        weights.append(1.0)
    arguments = training_arguments(config, context.model, context.launch, context.seed, context.work)
    del arguments["max_length"]  # preflight lets no prompt through that does not fit
    arguments |= {
        "num_generations": config.num_replies,
        "max_completion_length": rollout.max_reply_tokens,
        "temperature": rollout.temperature,
        "beta": config.beta,
        "mask_truncated_completions": rollout.drop_truncated,
        "reward_weights": weights,
    }
    num_groups = config.global_batch_size // config.num_replies
    make, kind = (QuietRLOOTrainer, RLOOConfig) if config.method == "rloo" else (QuietGRPOTrainer, GRPOConfig)
    trainer = make(
        model=model,
        reward_funcs=functions,
        args=kind(**arguments),
        train_dataset=Dataset.from_list(
            [{"prompt": chat.accepted(prompt.messages)} for prompt in whole_batches(prompts, num_groups)]
        ),
        processing_class=tokenizer,
        peft_config=lora_config(context.model, model),
        callbacks=[reporter],
    )
    metrics = train(trainer, reporter, context.meter)
    save_checkpoint(trainer, base_path, context.model, context.out)
    scores = [row["objective/scores"] for row in reporter.history]
    return {**metrics, "score_first": scores[0], "score_last": scores[-1]}, reporter.history
