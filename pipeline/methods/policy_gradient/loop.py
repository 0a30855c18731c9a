"""Proximal policy optimisation of a language model (Bai et al. 2022, section 4.2; Ouyang et al. 2022, section 3.5).

A step: draw a reply to each prompt of the global batch, score it, take a KL penalty at every token, estimate
advantages, and make a few passes of clipped updates over the rollouts. Every draw of step t derives from (seed, t), so
the step's number is the whole state of chance: a resumed run goes on exactly as an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch

from pipeline.core import distributed
from pipeline.core.log import Bar, say, warn
from pipeline.core.stage import Context
from pipeline.methods.policy_gradient.actors import Actors
from pipeline.methods.policy_gradient.mathematics import (
    KL_ESTIMATORS,
    adapt_kl_coefficient,
    advantages_and_returns,
    explained_variance,
    length_mask,
    token_rewards,
    whiten,
)
from pipeline.methods.policy_gradient.rollouts import (
    Rollout,
    draw,
    gather,
    measure,
    padded,
)
from pipeline.methods.policy_gradient.update import Learner
from pipeline.methods.rewards import WeightedSum
from pipeline.records import Prompt, derive_seed, derived_rng
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.models import rows_a_device_holds

History = list[dict[str, float]]


@dataclass
class Control:
    """Everything of a run that is neither a weight nor an optimiser's."""

    step: int = 0
    """The step to take next, which is also the position in the data and in every stream of random numbers."""
    kl_coefficient: float = 0.0
    num_rollbacks: int = 0
    good_step: int = 0
    """The newest checkpoint whose policy was found within bounds."""
    num_scores: int = 0
    score_sum: float = 0.0
    score_square_sum: float = 0.0
    best_step: int = 0
    best_objective: float = -math.inf
    held_out: dict[str, list[float]] = field(default_factory=dict)
    """Step → the score of each held-out prompt."""
    stopped: str = ""
    history: History = field(default_factory=list)

    def note_scores(self, scores: Sequence[float]) -> None:
        self.num_scores += len(scores)
        self.score_sum += math.fsum(scores)
        self.score_square_sum += math.fsum(score * score for score in scores)

    @property
    def score_std(self) -> float:
        """Standard deviation of all scores so far; 1 while there is nothing to tell it from."""
        if self.num_scores < 2:
            return 1.0
        mean = self.score_sum / self.num_scores
        variance = self.score_square_sum / self.num_scores - mean * mean
        return math.sqrt(variance) if variance > 1e-12 else 1.0


class PPO:
    """Trains the policy (and its critic) of ``actors`` on rollouts scored by ``rewards``."""

    def __init__(
        self,
        actors: Actors,
        rewards: WeightedSum,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        config: Any,
        context: Context,
    ) -> None:
        self._actors, self._rewards, self._prompts, self._held_out = actors, rewards, list(prompts), list(held_out)
        self._config, self._ppo, self._rollout, self._context = config, config, config.rollout, context
        self._control = Control(kl_coefficient=config.beta)
        self._num_steps = max(1, math.ceil(config.num_epochs * len(self._prompts) / config.global_batch_size))
        self._rows = rows_a_device_holds(context.launch)
        self._learner = Learner(actors, config, context, self._num_steps)
        self._checkpoints = Checkpoints(context.work)

    # --- The loop ------------------------------------------------------------------------------------------------

    def train(self) -> tuple[dict[str, Any], History]:
        """Train, from the newest checkpoint if there is one, and leave the best policy in place.

        Returns:
            metrics, and one row of numbers a step.
        """
        resumed_from = self._resume()
        control = self._control
        with Bar(f"aligning ({self._config.method})", self._num_steps, quiet=not distributed.is_main()) as bar:
            bar.advance(control.step, cached=True)
            while control.step < self._num_steps and not control.stopped:
                with self._context.meter.running():
                    self._step()
                bar.advance()
        self._checkpoints.load(f"best-{control.best_step}", self._restore_weights)
        return self._metrics(resumed_from), control.history

    def _step(self) -> None:
        control, step = self._control, self._control.step
        torch.manual_seed(derive_seed(self._context.seed, "ppo", step))
        rollouts = self._collect(step)
        numbers = self._describe(rollouts)
        if trouble := self._out_of_bounds(rollouts):
            self._go_back(trouble)
        else:
            if self._checkpoints.has(f"step-{step}"):
                control.good_step = step
            counted = [rollout for rollout in rollouts if self._counts(rollout)]
            numbers |= self._learner.update(counted, step)
            self._steer(numbers["objective/kl"])
        control.step += 1
        last = control.step == self._num_steps or bool(control.stopped)
        if last or control.step % self._rollout.held_out_every_steps == 0:
            numbers |= self._examine(control.step)
        self._log(numbers, rollouts)
        if last or trouble or control.step % self._config.save_every_steps == 0:
            self._save()

    # --- Rollouts ------------------------------------------------------------------------------------------------

    def _collect(self, step: int) -> list[Rollout]:
        """The global batch of a step, drawn, scored and measured, on every rank."""
        prompts = self._batch_of(step)
        seeds = [derive_seed(self._context.seed, "rollout", step, row) for row in range(len(prompts))]
        rollouts = self._drawn(prompts, seeds, with_values=True)
        self._control.note_scores([rollout.score for rollout in rollouts])
        self._estimate_advantages(rollouts)
        return rollouts

    def _batch_of(self, step: int) -> list[Prompt]:
        """Each epoch has an order of its own, and batches run on from one into the next."""
        size, num_prompts = self._config.global_batch_size, len(self._prompts)
        batch = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, num_prompts)
            order = derived_rng(self._context.seed, "prompts", epoch).sample(range(num_prompts), num_prompts)
            batch.append(self._prompts[order[place]])
        return batch

    def _drawn(self, prompts: Sequence[Prompt], seeds: Sequence[int], with_values: bool) -> list[Rollout]:
        batch_rows = self._context.launch.batch_rows or (256 if torch.cuda.is_available() else 64)
        with self._learner.accelerator.autocast():
            mine = draw(self._actors, prompts, seeds, self._rollout, batch_rows)
        with self._learner.accelerator.autocast():
            measure(self._actors, mine, self._rollout.temperature, 2 * self._rows, with_values)
        rewarded = self._rewards([rollout.prompt.messages for rollout in mine], [rollout.text for rollout in mine])
        for row, rollout in enumerate(mine):
            rollout.score = rewarded.totals[row]
            rollout.parts = {name: scores[row] for name, scores in rewarded.parts.items()}
        return sorted(gather(mine), key=lambda rollout: rollout.index)

    def _estimate_advantages(self, rollouts: list[Rollout]) -> None:
        device = torch.device("cpu")
        lengths = torch.tensor([len(rollout.reply_tokens) for rollout in rollouts])
        mask = length_mask(lengths)
        logprobs, references, values = (
            padded([getattr(rollout, name) for rollout in rollouts], device)
            for name in ("logprobs", "reference_logprobs", "values")
        )
        kl = KL_ESTIMATORS[self._ppo.kl_estimator](logprobs, references)
        rewards = token_rewards(torch.tensor(self._shaped(rollouts)), kl, lengths, self._control.kl_coefficient)
        advantages, returns = advantages_and_returns(rewards, values, mask, self._ppo.gamma, self._ppo.gae_lambda)
        if self._ppo.whiten_advantages:
            counted = mask & torch.tensor([self._counts(rollout) for rollout in rollouts])[:, None]
            advantages = whiten(advantages, counted)
        for row, rollout in enumerate(rollouts):
            rollout.advantages = advantages[row, : lengths[row]]
            rollout.returns = returns[row, : lengths[row]]

    def _shaped(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Scores as the policy is trained on them: scaled, clipped, and less the penalty for having been cut off."""
        limit = self._ppo.clip_score if self._ppo.clip_score is not None else math.inf
        scale = self._control.score_std if self._ppo.normalise_scores else 1.0
        penalty = self._rollout.missing_eos_penalty or 0.0
        return [
            min(max(rollout.score / scale, -limit), limit) - (0.0 if rollout.ended else penalty) for rollout in rollouts
        ]

    def _counts(self, rollout: Rollout) -> bool:
        return rollout.ended or not self._rollout.drop_truncated

    # --- Bounds --------------------------------------------------------------------------------------------------

    def _steer(self, kl: float) -> None:
        if self._ppo.kl_controller == "adaptive":
            self._control.kl_coefficient = adapt_kl_coefficient(
                self._control.kl_coefficient,
                kl,
                self._ppo.target_kl,
                self._config.global_batch_size,
                self._ppo.kl_horizon_episodes,
            )

    def _out_of_bounds(self, rollouts: Sequence[Rollout]) -> str:
        """What is wrong with the policy that drew these rollouts, or nothing."""
        kl, entropy = _kl(rollouts), _token_entropy(rollouts)
        if self._ppo.max_kl is not None and not kl <= self._ppo.max_kl:
            return f"KL is {kl:.3g} nats a reply, above align.ppo.max_kl={self._ppo.max_kl:g}"
        if self._ppo.min_entropy is not None and not entropy >= self._ppo.min_entropy:
            return f"entropy is {entropy:.3g} nats a token, below align.ppo.min_entropy={self._ppo.min_entropy:g}"
        return ""

    def _go_back(self, trouble: str) -> None:
        """Return to the last policy that was within bounds; pull harder from there, or stop."""
        control = self._control
        stop = self._ppo.out_of_bounds == "stop" or control.num_rollbacks >= self._ppo.max_rollbacks
        self._checkpoints.load(f"step-{control.good_step}", self._restore_training)
        if stop:
            control.stopped = f"{trouble}; stopped at step {control.step}"
        else:
            control.num_rollbacks += 1
            control.kl_coefficient *= 2
        if distributed.is_main():
            what = "training stops" if stop else f"the KL coefficient is now {control.kl_coefficient:g}"
            warn(f"step {control.step}: {trouble}; back to the policy of step {control.good_step}, and {what}.")

    # --- Held-out prompts ----------------------------------------------------------------------------------------

    def _examine(self, step: int) -> dict[str, float]:
        """Score the policy on prompts it is not trained on, always with the same seeds; keep the best."""
        control = self._control
        seeds = [derive_seed(self._context.seed, "held-out", row) for row in range(len(self._held_out))]
        rollouts = self._drawn(self._held_out, seeds, with_values=False)
        penalty = self._rollout.missing_eos_penalty or 0.0
        scores = [rollout.score - (0.0 if rollout.ended else penalty) for rollout in rollouts]
        kl = _kl(rollouts)
        objective = fmean(scores) - self._config.beta * kl
        control.held_out[str(step)] = [rollout.score for rollout in rollouts]
        # The policy of the start is always kept: whatever else is must have improved on it, within bounds.
        if step == 0 or (objective > control.best_objective and not self._out_of_bounds(rollouts)):
            control.best_objective, control.best_step = objective, step
            self._checkpoints.save(f"best-{step}", {"weights": self._actors.state()})
        return {
            "held_out/scores": fmean(rollout.score for rollout in rollouts),
            "held_out/kl": kl,
            "held_out/objective": objective,
        }

    # --- Telling -------------------------------------------------------------------------------------------------

    def _describe(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """What the rollouts say of the policy that drew them, before it is updated."""
        kl = KL_ESTIMATORS[self._ppo.kl_estimator]
        penalty = -self._control.kl_coefficient * fmean(
            float(kl(rollout.logprobs, rollout.reference_logprobs).sum()) for rollout in rollouts
        )
        lengths = torch.tensor([len(rollout.reply_tokens) for rollout in rollouts])
        values, returns = (
            padded([getattr(r, name) for r in rollouts], torch.device("cpu")) for name in ("values", "returns")
        )
        return {
            "objective/kl": _kl(rollouts),
            "objective/entropy": fmean(float(-rollout.logprobs.sum()) for rollout in rollouts),
            "objective/token_entropy": _token_entropy(rollouts),
            "objective/non_score_reward": penalty,
            "objective/rlhf_reward": fmean(self._shaped(rollouts)) + penalty,
            "objective/scores": fmean(rollout.score for rollout in rollouts),
            **{f"rewards/{name}": fmean(rollout.parts[name] for rollout in rollouts) for name in rollouts[0].parts},
            "objective/kl_coefficient": self._control.kl_coefficient,
            "val/num_eos_tokens": float(sum(rollout.ended for rollout in rollouts)),
            "val/explained_variance": float(explained_variance(values, returns, length_mask(lengths))),
            "reply_tokens_mean": float(lengths.float().mean()),
        }

    def _log(self, numbers: dict[str, float], rollouts: Sequence[Rollout]) -> None:
        step, tracker = self._control.step, self._context.tracker
        loss = numbers.get("loss/policy_avg")
        self._control.history.append(
            {
                "step": step,
                "episode": step * self._config.global_batch_size,
                **({} if loss is None else {"loss": loss}),
                "lr": self._learner.learning_rate,
                **numbers,
            }
        )
        tracker.log({f"train/{name}": value for name, value in self._control.history[-1].items()}, step=step)
        if step % self._rollout.show_every_steps == 0 or step == self._num_steps:
            columns = ("step", "pool", "prompt", "reply", "ended", "score", "kl")
            rows = [(step, r.prompt.pool, r.prompt.request, r.text, r.ended, r.score, r.kl_nats) for r in rollouts[:16]]
            tracker.table("train/rollouts", columns, rows)

    def _metrics(self, resumed_from: int) -> dict[str, Any]:
        control = self._control
        scores = [row["objective/scores"] for row in control.history]
        return {
            "num_steps": control.step,
            "num_episodes": control.step * self._config.global_batch_size,
            "resumed_from_step": resumed_from,
            "best_step": control.best_step,
            "num_rollbacks": control.num_rollbacks,
            "stopped": control.stopped or None,
            "score_first": scores[0],
            "score_last": scores[-1],
            "kl_last": control.history[-1]["objective/kl"],
            "held_out_scores": {"0": control.held_out["0"], "best": control.held_out[str(control.best_step)]},
        }

    # --- Checkpoints ---------------------------------------------------------------------------------------------

    def _save(self) -> None:
        control = self._control
        state = {
            "weights": self._actors.state(),
            **self._learner.state(),
            "control": asdict(control),
        }
        self._checkpoints.save(f"step-{control.step}", state)
        self._checkpoints.keep("step", [control.step, control.good_step])
        self._checkpoints.keep("best", [control.best_step])

    def _resume(self) -> int:
        """Load the newest checkpoint; where there is none, look at the policy as it is and save that one."""
        newest = self._checkpoints.newest("step")
        if newest is None:
            torch.manual_seed(derive_seed(self._context.seed, "ppo"))
            with self._context.meter.running():
                self._examine(0)
            self._save()
            return 0
        self._checkpoints.load(f"step-{newest}", self._restore)
        if newest and distributed.is_main():
            say(f"  resuming from step {newest}")
        return newest

    def _restore(self, state: dict[str, Any]) -> None:
        self._restore_training(state)
        self._control = Control(**state["control"])

    def _restore_training(self, state: dict[str, Any]) -> None:
        self._restore_weights(state)
        self._learner.load_state(state)

    def _restore_weights(self, state: dict[str, Any]) -> None:
        self._actors.load_state(state["weights"])


def _kl(rollouts: Sequence[Rollout]) -> float:
    """In nats a reply."""
    return fmean(rollout.kl_nats for rollout in rollouts)


def _token_entropy(rollouts: Sequence[Rollout]) -> float:
    """In nats a token."""
    return float(torch.cat([rollout.entropies for rollout in rollouts]).mean())
