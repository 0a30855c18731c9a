"""Make rollouts from prompts: sample replies, compute log-probabilities and values, score, estimate advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from pipeline.core import distributed
from pipeline.core.log import Usage, warn
from pipeline.core.stage import Context
from pipeline.evals.counterfactuals import outcome
from pipeline.methods.base import CONSTITUTION, GROUP_VARIANCE
from pipeline.methods.group_variance import group_variance
from pipeline.methods.policy_gradient.actors import Actors
from pipeline.methods.policy_gradient.base import PolicyGradient
from pipeline.methods.policy_gradient.control import Control
from pipeline.methods.policy_gradient.describe import MISMATCH, mismatch, num_unreadable
from pipeline.methods.policy_gradient.live import FIELD, live_engine
from pipeline.methods.policy_gradient.mathematics import KL_ESTIMATORS
from pipeline.methods.policy_gradient.rollouts import Rollout, RolloutTensors, draw, gather, measure, padded
from pipeline.methods.rewards import WeightedSum, warn_of_unreadable_rewards
from pipeline.records import Prompt, derive_seed
from pipeline.training.models import rows_a_device_holds

MOST_MISMATCH = 0.5  # of ``clip_range``, which says how far a token's ratio may go in an update; bf16 is below it


class Collector:
    """Samples replies with the current policy and scores them with ``rewards``. Every rank gets all rollouts."""

    def __init__(
        self,
        method: PolicyGradient,
        actors: Actors,
        rewards: WeightedSum,
        config: Any,
        context: Context,
        accelerator: Accelerator,
    ) -> None:
        self._method, self._actors, self._rewards = method, actors, rewards
        self._config, self._context, self._accelerator = config, context, accelerator
        self._engine = live_engine(actors, context)
        self._rows = rows_a_device_holds(context.launch)
        self._has_warned = self._has_warned_of_mismatch = False

    def for_training(self, prompts: Sequence[Prompt], control: Control) -> list[Rollout]:
        """Return the global batch of a step with advantages: one reply to each of ``prompts``."""
        seeds = [derive_seed(self._context.seed, "rollout", control.step, row) for row in range(len(prompts))]
        rollouts = self._collect(prompts, seeds, with_values=True)
        self._check_mismatch(rollouts, control.step)
        control.note_scores([rollout.score for rollout in rollouts])
        shape_scores(rollouts, self._config, control.score_std)
        self._estimate_advantages(rollouts, control.kl_coefficient)
        return rollouts

    def held_out(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Return scored replies to held-out prompts. The seeds are the same at every call; only the policy differs."""
        seeds = [derive_seed(self._context.seed, "held-out", row) for row in range(len(prompts))]
        return self._collect(prompts, seeds, with_values=False)

    def _collect(self, prompts: Sequence[Prompt], seeds: Sequence[int], with_values: bool) -> list[Rollout]:
        rollout = self._config.rollout
        with self._accelerator.autocast():
            mine = draw(self._engine, prompts, seeds, rollout, self._context)
        with self._actors.gathered():
            with self._accelerator.autocast():
                measure(self._actors, mine, rollout.temperature, 2 * self._rows, with_values)
            self._score(mine)
        rollouts = sorted(gather(mine), key=lambda rollout: rollout.index)
        reward_equal_treatment(rollouts, self._config)
        if CONSTITUTION in self._rewards.parts:
            self._check_judge(num_unreadable(rollouts), len(rollouts))
        return rollouts

    def _check_mismatch(self, rollouts: Sequence[Rollout], step: int) -> None:
        """Warn once if the engine samples from another distribution than the trainer's policy."""
        found = mismatch(rollouts).get(MISMATCH, 0.0)
        limit = MOST_MISMATCH * self._config.clip_range
        if self._has_warned_of_mismatch or found <= limit or not distributed.is_main():
            return
        self._has_warned_of_mismatch = True
        warn(
            f"step {step}: the log-probabilities of {FIELD}.kind={self._context.policy_engine.kind!r} differ from the "
            f"trainer's by {found:.3g} nats per token on average, above {limit:.3g} ({MOST_MISMATCH} of "
            f"align.clip_range): the replies come from another distribution than the policy's. Run the engine in the "
            f"number format of the trainer and without quantisation, or use {FIELD}=hf."
        )

    def _check_judge(self, num_unreadable: int, num_rollouts: int) -> None:
        """Warn once if many answers of the judge can't be read; stop at any step where none can."""
        if num_unreadable == num_rollouts or not self._has_warned:
            self._has_warned = warn_of_unreadable_rewards(num_unreadable, num_rollouts)

    def _score(self, mine: Sequence[Rollout]) -> None:
        meter = self._context.meter
        num_calls, usage, meter.usage = meter.num_calls, meter.usage, {}
        rewarded = self._rewards([rollout.prompt.messages for rollout in mine], [rollout.text for rollout in mine])
        for row, rollout in enumerate(mine):
            rollout.score = rewarded.totals[row]
            rollout.parts = {name: scores[row] for name, scores in rewarded.parts.items()}
            rollout.unreadable = rewarded.unreadable[row]
        # The judge counted only the calls of this rank.
        meter.num_calls = num_calls + sum(gather([meter.num_calls - num_calls]))
        for of_a_rank in gather([meter.usage]):
            for name, used in of_a_rank.items():
                usage.setdefault(name, Usage()).add(used)
        meter.usage = usage

    def _estimate_advantages(self, rollouts: Sequence[Rollout], kl_coefficient: float) -> None:
        logprobs, references, values = (
            padded([getattr(rollout, name) for rollout in rollouts], torch.device("cpu"))
            for name in ("logprobs", "reference_logprobs", "values")
        )
        drawn = RolloutTensors(
            scores=torch.tensor([rollout.shaped_score for rollout in rollouts]),
            kl=KL_ESTIMATORS[self._method.kl_estimator(self._config)](logprobs, references),
            values=values,
            lengths=torch.tensor([len(rollout.reply_tokens) for rollout in rollouts]),
            is_trained_on=torch.tensor([rollout.is_trained_on for rollout in rollouts]),
            kl_coefficient=kl_coefficient,
        )
        advantages, returns = self._method.advantages(drawn, self._config)
        for row, rollout in enumerate(rollouts):
            rollout.advantages = advantages[row, : drawn.lengths[row]]
            if returns is not None:
                rollout.returns = returns[row, : drawn.lengths[row]]


def reward_equal_treatment(rollouts: Sequence[Rollout], config: Any) -> None:
    """Add the reward ``group_variance`` to the scores. It needs the replies of all ranks."""
    weight = config.rewards.get(GROUP_VARIANCE)
    if weight is None:
        return
    compared = [
        float(outcome(rollout.text, rollout.prompt.request) == "refused")
        if config.group_score == "declines"
        else rollout.score
        for rollout in rollouts
    ]
    parts = group_variance(compared, [rollout.prompt for rollout in rollouts])
    for rollout, part in zip(rollouts, parts, strict=True):
        rollout.parts[GROUP_VARIANCE] = part
        rollout.score += weight * part


def shape_scores(rollouts: Sequence[Rollout], config: Any, score_std: float) -> None:
    """Set the scores for training (scaled, clipped, minus the penalty for truncation) and which replies to train on."""
    limit = config.clip_score if config.clip_score is not None else math.inf
    scale = score_std if config.normalise_scores else 1.0
    for rollout in rollouts:
        rollout.shaped_score = min(max(rollout.score / scale, -limit), limit) - eos_penalty(rollout, config)
        rollout.is_trained_on = rollout.ended or not config.rollout.drop_truncated


def eos_penalty(rollout: Rollout, config: Any) -> float:
    return 0.0 if rollout.ended else config.rollout.missing_eos_penalty or 0.0
