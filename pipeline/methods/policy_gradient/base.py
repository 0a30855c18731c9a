"""The base class of policy-gradient methods: they sample replies, reward them, and train under a KL penalty."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context, Cost, Memory, Metrics, Prepared
from pipeline.data.counterfactuals import CounterfactualSet, counterfactual_sets
from pipeline.data.drawing import held_out_prompts, rollout_prompts
from pipeline.engines.models import context_length, load_tokenizer, resolve_path
from pipeline.evals.counterfactuals import refuse_evaluated
from pipeline.methods.base import History, Method, judge_role, num_judge_calls
from pipeline.methods.group_variance import batch_of_step
from pipeline.methods.policy_gradient.live import check_live
from pipeline.methods.policy_gradient.second_judge import check_second_judge, judge_cost
from pipeline.records import Prompt, derived_rng

if TYPE_CHECKING:
    import torch

    from pipeline.methods.policy_gradient.rollouts import RolloutTensors

TOKENS_PER_TURN = 50  # an assumption of the cost estimate


class PolicyGradient(Method):
    """Samples replies to training prompts and trains on their rewards. A subclass estimates the advantages."""

    reads_preferences = False
    uses_value_model: ClassVar[bool] = False
    """A value model is trained, too. ``Config`` must then be a ``ValueConfig``."""
    kl_in_loss: ClassVar[bool] = False
    """β·KL is a term of the policy's loss; otherwise ``advantages`` subtracts it from the rewards."""

    @abstractmethod
    def advantages(self, drawn: RolloutTensors, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Estimate the advantage of each token of a step's rollouts.

        Returns:
            advantages, and the returns (the targets of the value model; None without one): (rows, tokens) each, zero
            after the end of a reply.
        """

    def kl_estimator(self, config: Any) -> str:
        """The estimator of the KL per token: a key of ``KL_ESTIMATORS``."""
        return "k1"

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        whole = prepared.config
        check_live(whole)
        check_second_judge(config, prepared)
        if whole.evaluate.split == "validation":
            raise ConfigError(
                f"evaluate.split is 'validation', but align={self.name} chooses its best policy on that split; use "
                "evaluate.split=test."
            )
        held_out = held_out_prompts(prepared.prompts, config.rollout)
        if len(held_out) < 2:
            raise ConfigError(
                f"align.rollout.num_held_out is {config.rollout.num_held_out}, but the validation split has only "
                f"{len(held_out)} such prompts; raise data.validation_fraction."
            )
        sets = counterfactual_sets(whole.data, config.rollout.num_counterfactuals)
        refuse_evaluated(sets, prepared)
        refuse_large_sets(config, sets)
        asked = rollout_prompts(prepared.prompts, config.rollout, sets)
        refuse_long_prompts(config, prepared, [*asked, *held_out])
        return [*super().check(config, prepared), *notes_on_openings(config, prepared)]

    def learns_from_openings(self, config: Any) -> bool:
        return True  # its reward model does

    def cost(self, config: Any, prepared: Prepared) -> Cost:
        """Count sampled replies (in training and on held-out prompts), and the calls of the constitution's judge and of
        the second judge."""
        sets = counterfactual_sets(prepared.config.data, config.rollout.num_counterfactuals)
        prompts, seed = rollout_prompts(prepared.prompts, config.rollout, sets), prepared.config.seed
        num_steps = config.num_steps(len(prompts))
        asked = [prompt for step in range(num_steps) for prompt in prompts_of_step(step, prompts, config, seed)]
        measured = held_out_prompts(prepared.prompts, config.rollout)
        measured *= 1 + math.ceil(num_steps / config.rollout.held_out_every_steps)
        num_replies = len(asked) + len(measured)
        num_models = 2 if self.uses_value_model else 1  # only trained ones
        tokens = TOKENS_PER_TURN + config.rollout.max_reply_tokens
        roles = judge_role(prepared, _num_judge_calls(config, prepared, [*asked, *measured]), 3 * tokens)
        roles |= judge_cost(config, measured, 3 * tokens)
        judge = Cost.of_roles(roles)
        return Cost(
            num_calls=num_replies + judge.num_calls,
            num_tokens_written=num_replies * config.rollout.max_reply_tokens + judge.num_tokens_written,
            # One pass to sample, one of the reference; each trained model: one to measure, one per PPO epoch.
            num_tokens_read=len(asked) * (2 + num_models * (1 + config.num_ppo_epochs)) * tokens,
            num_steps=num_steps,
            roles=roles,
        )

    def memory(self, config: Any, prepared: Prepared) -> Memory:
        """The policy and the value model on the rows of a minibatch. Full fine-tuning has a model for each role."""
        from pipeline.training import footprint
        from pipeline.training.models import rows_a_device_holds

        whole, longest_reply = prepared.config, config.rollout.max_reply_tokens
        num_trained = 2 if self.uses_value_model else 1
        return footprint.training(
            footprint.shape_of(whole.model),
            rows_a_device_holds(whole.launch),
            min(config.max_length_tokens, TOKENS_PER_TURN + longest_reply),
            longest_reply,
            num_shards=footprint.num_shards(whole.launch),
            checkpointing=footprint.recomputes(whole.launch),
            num_copies=1 + num_trained if whole.model.tuning == "full" else 1,
            num_adapters=num_trained,
        )

    def train(self, config: Any, context: Context) -> tuple[Metrics, History]:
        from pipeline.methods.policy_gradient.run import train

        return train(self, config, context)


def prompts_of_step(step: int, prompts: Sequence[Prompt], config: Any, seed: int) -> list[Prompt]:
    """Return one prompt per reply of a step. Replies to the same prompt are neighbours.

    Each epoch shuffles the prompts differently, and a step may contain prompts of two epochs. All groups of a
    counterfactual template are in one step.
    """
    number = config.global_batch_size // config.replies_per_prompt
    if config.rollout.num_counterfactuals:
        chosen = batch_of_step(step, prompts, number, seed)
        return [prompt for prompt in chosen for _ in range(config.replies_per_prompt)]
    positions = range(step * number, (step + 1) * number)
    epochs = {position // len(prompts) for position in positions}
    orders = {epoch: derived_rng(seed, "prompts", epoch).sample(prompts, len(prompts)) for epoch in epochs}
    chosen = [orders[position // len(prompts)][position % len(prompts)] for position in positions]
    return [prompt for prompt in chosen for _ in range(config.replies_per_prompt)]


def notes_on_openings(config: Any, prepared: Prepared) -> list[str]:
    """What does not suit a reward model that reads only how a reply begins."""
    rollout, preferences = config.rollout, prepared.config.preferences
    if not (config.trains_reward_model and preferences.compares_openings):
        return []
    notes = []
    if rollout.max_reply_tokens > 2 * preferences.max_opening_tokens:
        notes.append(
            f"align.rollout.max_reply_tokens is {rollout.max_reply_tokens}, but preferences.pairs is 'openings', so "
            "the reward model reads only how a reply begins; short rollouts cost less, for example "
            f"align.rollout.max_reply_tokens={preferences.max_opening_tokens}."
        )
    elif rollout.missing_eos_penalty:
        notes.append(
            f"align.rollout.max_reply_tokens is {rollout.max_reply_tokens}, so most rollouts are cut off, and "
            f"align.rollout.missing_eos_penalty={rollout.missing_eos_penalty:g} teaches the policy to end early; use "
            "align.rollout.missing_eos_penalty=null."
        )
    return notes


def _num_judge_calls(config: Any, prepared: Prepared, asked: Sequence[Prompt]) -> int:
    """The number of calls of the constitution's judge for one reply per prompt; prompts may repeat."""
    counts = Counter(prompt.id for prompt in asked)
    by_id = {prompt.id: prompt for prompt in asked}
    return sum(
        number * num_judge_calls(config.reward_judge, [by_id[name]], prepared.constitution, prepared.config.seed)
        for name, number in counts.items()
    )


def refuse_large_sets(config: Any, sets: Sequence[CounterfactualSet]) -> None:
    """Check that a global batch holds all groups of each counterfactual template.

    Raises:
        ConfigError: an attribute has too many groups.
    """
    number = config.global_batch_size // config.replies_per_prompt
    for each in sets:
        if len(each.prompts) > number:
            raise ConfigError(
                f"align.global_batch_size is {config.global_batch_size}, which holds {number} prompts, but "
                f"{each.attribute!r} has {len(each.prompts)} groups, which must be in one batch; raise it to "
                f"{len(each.prompts) * config.replies_per_prompt} or more."
            )


def refuse_long_prompts(config: Any, prepared: Prepared, prompts: Sequence[Prompt]) -> None:
    """Check that every prompt and its longest reply fit the model's context and ``align.max_length_tokens``.

    Raises:
        ConfigError: a prompt does not fit; the message names the first one.
    """
    model, longest_reply = prepared.config.model, config.rollout.max_reply_tokens
    path = resolve_path(model.path)
    chat = Renderer(load_tokenizer(path, model.revision if path == model.path else None))
    most = min(config.max_length_tokens, context_length(path))
    for prompt in prompts:
        length = len(chat.prompt_ids(prompt.messages)) + longest_reply
        if length > most:
            raise ConfigError(
                f"prompt {prompt.id} with a reply of align.rollout.max_reply_tokens={longest_reply} has {length} "
                f"tokens, more than the {most} of align.max_length_tokens and the model's context; raise "
                "align.max_length_tokens, lower align.rollout.max_reply_tokens, or remove the prompt."
            )
