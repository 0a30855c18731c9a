"""Methods that draw replies, reward them, and raise the rewards under a KL penalty: one loop, several advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError
from pipeline.core.settings import RUNTIME
from pipeline.core.stage import Context, Cost, Metrics, Prepared
from pipeline.data.drawing import PoolSizes, held_out_prompts, rollout_prompts
from pipeline.engines.base import ENGINES
from pipeline.engines.models import context_length, load_tokenizer, resolve_path
from pipeline.methods.base import AlignConfig, History, Method, num_judge_calls
from pipeline.records import Prompt

TOKENS_PER_TURN = 50  # for estimates of tokens read


class RolloutConfig(PoolSizes):
    """Replies that are drawn from the policy while it trains, and the prompts they answer."""

    num_red_team: int = Field(default=64, ge=0)
    """Harmful requests."""
    num_ordinary: int = Field(default=64, ge=0)
    """Ordinary requests."""
    num_look_alike: int = Field(default=32, ge=0)
    """Harmless requests that look harmful."""
    temperature: float = Field(default=1.0, ge=0.05, le=5)
    """Replies are drawn at this temperature, and log-probabilities are taken at it."""
    max_reply_tokens: int = Field(default=48, ge=1)
    """A reply is cut off at so many tokens."""
    missing_eos_penalty: float | None = Field(default=1.0, ge=0)
    """Taken from the score of a reply that was cut off; null takes nothing."""
    drop_truncated: bool = False
    """Leave replies that were cut off out of the loss."""
    num_held_out: int = Field(default=32, ge=2)
    """Prompts of the validation split on which the policy is measured before, during and after training."""
    held_out_every_steps: int = Field(default=8, ge=1)
    """Steps between measurements on them; the best policy measured is kept."""
    show_every_steps: Annotated[int, RUNTIME] = Field(default=4, ge=1)
    """Steps between tables of sample replies on the dashboard."""

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        if self.num_prompts == 0:
            raise ValueError(
                "{here}.num_red_team, {here}.num_ordinary and {here}.num_look_alike are all 0; ask at least one prompt"
            )
        return self


class PolicyGradientConfig(AlignConfig):
    """What the loop sets, whatever the advantages are."""

    save_every_steps: int = Field(default=10, ge=1)
    """Steps between checkpoints, which are also what a rollback returns to."""
    rollout: RolloutConfig = RolloutConfig()
    """Replies and the prompts they answer."""
    num_minibatches: int = Field(default=4, ge=1)
    """Optimiser steps in which the global batch is gone through once."""
    num_ppo_epochs: int = Field(default=2, ge=1)
    """How often each rollout is trained on."""
    clip_range: float = Field(default=0.2, ge=1e-6)
    """The probability ratio π/π_old is clipped to 1 ± this."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL at each token (Schulman 2020)."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive`` steers β so that the KL comes near target_kl."""
    target_kl: float = Field(default=4.0, ge=1e-6)
    """Nats of KL per reply that the adaptive controller aims at."""
    kl_horizon_episodes: int = Field(default=512, ge=1)
    """Replies over which the adaptive controller reacts."""
    normalise_scores: bool = False
    """Divide scores by their running standard deviation."""
    clip_score: float | None = Field(default=5.0, ge=0)
    """Scores are clipped to ± this; null: not at all."""
    max_kl: float | None = Field(default=20.0, ge=0)
    """Nats of KL per reply; above, the step is not kept. Null: no bound."""
    min_entropy: float | None = Field(default=None, ge=0)
    """Nats of entropy per token; below, the policy has collapsed and the step is not kept. Null: no bound."""
    out_of_bounds: Literal["stop", "rollback"] = "rollback"
    """What happens at a bound: stop, or return to the last checkpoint within bounds and double β."""
    max_rollbacks: int = Field(default=2, ge=0)
    """After so many rollbacks training stops."""

    @model_validator(mode="after")
    def _check_loop(self) -> Self:
        if not self.rewards:
            raise ValueError(
                f"{{here}}.rewards is empty but {{here}}.method is {self.method!r}; name a reward, for instance "
                "{here}.rewards.reward_model=1"
            )
        bounded = self.max_kl is not None or self.min_entropy is not None
        if self.beta == 0 and bounded and self.out_of_bounds == "rollback":
            raise ValueError(
                "{here}.beta is 0, so {here}.out_of_bounds=rollback has no penalty to double; set it to 'stop', or "
                "{here}.beta above 0"
            )
        if self.global_batch_size % self.num_minibatches:
            raise ValueError(
                f"{{here}}.global_batch_size is {self.global_batch_size}, which {{here}}.num_minibatches="
                f"{self.num_minibatches} does not divide; use a multiple of it"
            )
        return self

    @property
    def replies_per_prompt(self) -> int:
        return 1


class GroupConfig(PolicyGradientConfig):
    """What methods set that compare several replies to one prompt."""

    num_replies: int = Field(default=4, ge=2)
    """Replies to each prompt; the others are the baseline of each."""

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.global_batch_size % self.num_replies:
            raise ValueError(
                f"{{here}}.global_batch_size is {self.global_batch_size}, which {{here}}.num_replies="
                f"{self.num_replies} does not divide; use a multiple of it"
            )
        return self

    @property
    def replies_per_prompt(self) -> int:
        return self.num_replies


class PolicyGradient(Method):
    """Draws replies to the training prompts and raises their rewards."""

    reads_preferences = False

    def check(self, config: Any, prepared: Prepared) -> list[str]:
        whole = prepared.config
        if not ENGINES[whole.policy_engine.kind].runs_live_model:
            able = [name for name in ENGINES if ENGINES[name].runs_live_model]
            raise ConfigError(
                f"policy_engine.kind is {whole.policy_engine.kind!r}, which can't draw replies from a model in "
                f"training, as align={self.name} needs; use policy_engine.kind={' or '.join(able)}."
            )
        if whole.evaluate.split == "validation":
            raise ConfigError(
                f"evaluate.split is 'validation', on which align={self.name} chooses the policy that it keeps; "
                "evaluate 'test'."
            )
        held_out = held_out_prompts(prepared.prompts, config.rollout)
        if len(held_out) < 2:
            raise ConfigError(
                f"align.rollout.num_held_out is {config.rollout.num_held_out}, but data.validation_fraction leaves "
                f"{len(held_out)} such prompts; raise it."
            )
        refuse_long_prompts(config, prepared, [*rollout_prompts(prepared.prompts, config.rollout), *held_out])
        return super().check(config, prepared)

    def cost(self, config: Any, prepared: Prepared) -> Cost:
        """Replies drawn in training and on held-out prompts, and what the constitution's judge asks about them."""
        prompts = rollout_prompts(prepared.prompts, config.rollout)
        held_out = held_out_prompts(prepared.prompts, config.rollout)
        steps = max(
            1, math.ceil(config.num_epochs * len(prompts) * config.replies_per_prompt / config.global_batch_size)
        )
        num_measured = 1 + math.ceil(steps / config.rollout.held_out_every_steps)
        num_drawn, num_held_out = steps * config.global_batch_size, num_measured * len(held_out)
        judge, seed = config.reward_judge, prepared.config.seed
        most = max((num_judge_calls(judge, [prompt], prepared.constitution, seed) for prompt in prompts), default=0)
        asked = num_measured * num_judge_calls(judge, held_out, prepared.constitution, seed) + num_drawn * most
        tokens = TOKENS_PER_TURN + config.rollout.max_reply_tokens
        num_replies = num_drawn + num_held_out
        return Cost(
            num_calls=num_replies + asked,
            num_tokens_written=num_replies * config.rollout.max_reply_tokens,
            num_tokens_read=num_drawn * (4 + 2 * config.num_ppo_epochs) * tokens,
            num_steps=steps,
        )

    def train(self, config: Any, context: Context) -> tuple[Metrics, History]:
        from pipeline.methods.policy_gradient.run import train

        return train(config, context)


def refuse_long_prompts(config: Any, prepared: Prepared, prompts: Sequence[Prompt]) -> None:
    """Every prompt must leave room for its reply in the model's context and in ``align.max_length_tokens``.

    Raises:
        ConfigError: names the first prompt that does not.
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
                "align.max_length_tokens, shorten replies, or leave the prompt out."
            )
