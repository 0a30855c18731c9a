"""The update: PPO epochs with clipped losses on one batch of rollouts, for the policy and the value model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from pipeline.core import distributed
from pipeline.core.stage import Context
from pipeline.engines.models import resolve_precision
from pipeline.engines.prefix import shares_prefixes
from pipeline.methods.policy_gradient.actors import Actors
from pipeline.methods.policy_gradient.base import PolicyGradient
from pipeline.methods.policy_gradient.mathematics import KL_ESTIMATORS, policy_loss, value_loss
from pipeline.methods.policy_gradient.rollouts import (
    Batch,
    Rollout,
    by_length,
    collate,
    gather,
    logprobs_and_entropy,
    padded,
    state_values,
)
from pipeline.records import derived_rng
from pipeline.training.models import rows_a_device_holds
from pipeline.training.sharding import divided_optimizer, whole_optimizer

Sums = dict[str, float]


class Learner:
    """Optimiser, learning-rate schedule and accelerator of a run with ``num_steps`` rollout batches."""

    def __init__(self, method: PolicyGradient, actors: Actors, config: Any, context: Context, num_steps: int) -> None:
        self._actors, self._config, self._seed = actors, config, context.seed
        self._kl_in_loss, self._kl_estimator = method.kl_in_loss, KL_ESTIMATORS[method.kl_estimator(config)]
        self._rows = rows_a_device_holds(context.launch)
        self._divided = distributed.sharding() != "none"
        asked = context.launch.gradient_checkpointing
        self._checkpointing = torch.cuda.is_available() if asked is None else asked
        dtype = resolve_precision(context.model.precision)
        mixed = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available())
        groups = [{"params": actors.policy_parameters(), "lr": config.learning_rate}]
        if actors.value_head is not None:
            groups.append({"params": actors.value_parameters(), "lr": config.value_learning_rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        num_updates = num_steps * config.num_ppo_epochs * config.num_minibatches
        num_warmup_updates = round(config.warmup_fraction * num_updates)
        self._scheduler = get_scheduler(config.lr_schedule, optimizer, num_warmup_updates, num_updates)
        self._optimizer = self.accelerator.prepare_optimizer(optimizer)

    @property
    def learning_rate(self) -> float:
        return float(self._scheduler.get_last_lr()[0])

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides the weights. Call on every rank."""
        return {
            "optimizer": whole_optimizer(self._optimizer.state_dict()),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(divided_optimizer(state["optimizer"], self._optimizer))
        self._scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def update(self, rollouts: Sequence[Rollout], step: int, kl_coefficient: float) -> dict[str, float]:
        """Run all PPO epochs on the rollouts of a step.

        Returns:
            metrics: means over the tokens of all epochs (gradient norms: over the updates). They are the same on every
            rank, and empty without rollouts.
        """
        sums: Sums = {}
        with self._actors.learning(self._checkpointing):
            for number in range(self._config.num_ppo_epochs):
                order = derived_rng(self._seed, "minibatches", step, number).sample(rollouts, len(rollouts))
                size = math.ceil(len(rollouts) / self._config.num_minibatches)
                for start in range(0, len(order), size or 1):
                    _add(sums, self._minibatch(order[start : start + size], kl_coefficient))
        whole: Sums = {}
        for part in gather([sums]):  # a rank without rows has fewer names
            _add(whole, part)
        if not whole:
            return {}
        num_tokens, num_updates = whole.pop("num_tokens"), whole.pop("num_updates")
        return {name: v / (num_updates if name.endswith("grad_norm") else num_tokens) for name, v in whole.items()}

    def _minibatch(self, rollouts: Sequence[Rollout], kl_coefficient: float) -> Sums:
        """Make one optimiser step. Losses are means over the tokens of the minibatch on all ranks together."""
        mine = rollouts[distributed.rank() :: distributed.world_size()]
        num_tokens = sum(len(rollout.reply_tokens) for rollout in rollouts)
        sums: Sums = {}
        trained = {"policy/grad_norm": self._actors.policy_parameters()}
        batches = list(by_length(mine, self._rows))
        if self._divided:
            batches += self._fillers(rollouts, len(batches))
        for some in batches:
            _add(sums, self._learn_policy(some, num_tokens, kl_coefficient))
        if self._actors.value_head is not None:
            trained["val/grad_norm"] = self._actors.value_parameters()
            for some in batches:
                _add(sums, self._learn_values(some, num_tokens))
        for parameters in trained.values():
            _sum_gradients(parameters, self.accelerator)
        self.accelerator.unscale_gradients(self._optimizer)
        clip = torch.nn.utils.clip_grad_norm_
        norms = {name: _number(clip(part, self._config.max_grad_norm)) for name, part in trained.items()}
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        # ``update`` adds up the ranks' sums; these values are the same on every rank, so each rank adds its share.
        alike = {"num_tokens": num_tokens, "num_updates": 1, **norms}
        return sums | {name: value / distributed.world_size() for name, value in alike.items()}

    def _fillers(self, rollouts: Sequence[Rollout], num_batches: int) -> list[list[Rollout]]:
        """Batches that count for nothing. Ranks that divide the weights must all learn from the same number of batches,
        and the first rank has the most."""
        most = math.ceil(math.ceil(len(rollouts) / distributed.world_size()) / self._rows)
        return [[replace(rollouts[0], is_filler=True)]] * (most - num_batches)

    def _learn_policy(self, rollouts: Sequence[Rollout], num_tokens: int, kl_coefficient: float) -> Sums:
        batch = self._batch(rollouts)
        old_logprobs, advantages, reference_logprobs = self._padded(
            rollouts, "logprobs", "advantages", "reference_logprobs"
        )
        with self._actors.policy() as model:
            with self.accelerator.autocast():
                logprobs, entropies = logprobs_and_entropy(model, batch, self._config.rollout.temperature)
            losses, clipped = policy_loss(logprobs, old_logprobs, advantages, self._config.clip_range)
            terms = {}
            if self._kl_in_loss:
                terms["loss/kl_avg"] = self._kl_estimator(logprobs, reference_logprobs)
                losses = losses + kl_coefficient * terms["loss/kl_avg"]
            self.accelerator.backward((losses * batch.mask).sum() / num_tokens)
        change = (logprobs - old_logprobs).detach()
        terms |= {
            "loss/policy_avg": losses,
            "policy/approxkl_avg": 0.5 * change**2,
            "policy/clipfrac_avg": clipped,
            "policy/entropy_avg": entropies,
            "val/ratio": change.exp(),
        }
        return _sums(batch.mask, terms)

    def _learn_values(self, rollouts: Sequence[Rollout], num_tokens: int) -> Sums:
        batch, head = self._batch(rollouts), self._actors.value_head
        assert head is not None
        old_values, returns = self._padded(rollouts, "values", "returns")
        with self._actors.value_trunk() as trunk:
            with self.accelerator.autocast():
                values = state_values(trunk, head, batch)
            losses, clipped = value_loss(values.float(), old_values, returns, self._config.value_clip_range)
            self.accelerator.backward((losses * batch.mask).sum() / num_tokens)
        return _sums(batch.mask, {"loss/value_avg": losses, "val/clipfrac_avg": clipped})

    def _batch(self, rollouts: Sequence[Rollout]) -> Batch:
        with self._actors.policy() as model:
            share = not self._checkpointing and not self._divided and shares_prefixes(model)
        batch = collate(rollouts, distributed.default_device(), share)
        return replace(batch, mask=torch.zeros_like(batch.mask)) if rollouts[0].is_filler else batch

    def _padded(self, rollouts: Sequence[Rollout], *names: str) -> Iterator[torch.Tensor]:
        """Attributes of the rollouts as tensors: (rows, reply tokens) each."""
        for name in names:
            yield padded([getattr(rollout, name) for rollout in rollouts], distributed.default_device())


def _add(sums: Sums, more: Sums) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def _sum_gradients(parameters: Sequence[torch.nn.Parameter], accelerator: Accelerator) -> None:
    """Sum the gradients of all ranks with one all-reduce. A rank without rows adds zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        elif isinstance(parameter.grad, DTensor):
            parameter.grad.mul_(distributed.world_size())  # FSDP has averaged it over the ranks
    parameters = [parameter for parameter in parameters if not isinstance(parameter.grad, DTensor)]
    if distributed.world_size() == 1 or not parameters:
        return
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    total = accelerator.reduce(flat, "sum")
    start = 0
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.copy_(total[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()


def _number(norm: torch.Tensor) -> float:
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _sums(mask: torch.Tensor, values: dict[str, torch.Tensor]) -> Sums:
    """Sums over the tokens where the mask is True, by name."""
    return {name: float((value.detach() * mask).sum()) for name, value in values.items()}
