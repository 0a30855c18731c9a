"""The training loop of the policy-gradient methods (Bai et al. 2022, section 4.2; Ouyang et al. 2022, section 3.5).

A step samples replies to the prompts of a global batch, scores them, estimates advantages under a KL penalty, and makes
some PPO epochs of clipped updates on the rollouts. All random numbers of step t derive from (seed, t), so a resumed run
gives the same result as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import torch

from pipeline.core import distributed
from pipeline.core.log import Bar, Usage, say, warn
from pipeline.core.stage import Context, Metrics
from pipeline.methods.base import History
from pipeline.methods.policy_gradient.actors import Actors
from pipeline.methods.policy_gradient.base import PolicyGradient, prompts_of_step
from pipeline.methods.policy_gradient.collect import Collector, eos_penalty
from pipeline.methods.policy_gradient.control import Control
from pipeline.methods.policy_gradient.describe import UNREADABLE, describe, mean_kl, token_entropy
from pipeline.methods.policy_gradient.mathematics import KL_ESTIMATORS, adapt_kl_coefficient
from pipeline.methods.policy_gradient.rollouts import Rollout
from pipeline.methods.policy_gradient.second_judge import SecondJudge, fall
from pipeline.methods.policy_gradient.update import Learner
from pipeline.methods.rewards import WeightedSum
from pipeline.records import HeldOutPoint, Prompt, derive_seed
from pipeline.training.checkpoints import Checkpoints


class Loop:
    """Trains the policy of ``actors`` (and the value model, if any) on rollouts scored by ``rewards``."""

    def __init__(
        self,
        method: PolicyGradient,
        actors: Actors,
        rewards: WeightedSum,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        config: Any,
        context: Context,
    ) -> None:
        self._method, self._actors, self._config, self._context = method, actors, config, context
        self._prompts, self._held_out = list(prompts), list(held_out)
        self._control = Control(kl_coefficient=config.beta)
        self._num_steps = config.num_steps(len(prompts))
        self._learner = Learner(method, actors, config, context, self._num_steps)
        self._collector = Collector(method, actors, rewards, config, context, self._learner.accelerator)
        self._second_judge = SecondJudge(config, context)
        self._checkpoints = Checkpoints(context.work)

    # --- The loop ------------------------------------------------------------------------------------------------

    def train(self) -> tuple[Metrics, History, list[HeldOutPoint]]:
        """Train, from the newest checkpoint if there is one. Afterwards ``actors`` has the best policy's weights.

        Returns:
            metrics, one dict of numbers per step, and the measurements on held-out prompts.
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
        return self._metrics(resumed_from), control.history, control.points

    def _step(self) -> None:
        control, step = self._control, self._control.step
        torch.manual_seed(derive_seed(self._context.seed, self._config.method, step))
        prompts = prompts_of_step(step, self._prompts, self._config, self._context.seed)
        rollouts = self._collector.for_training(prompts, control)
        kl = KL_ESTIMATORS[self._method.kl_estimator(self._config)]
        numbers = describe(rollouts, kl, control.kl_coefficient)
        if trouble := self._out_of_bounds(rollouts):
            self._go_back(trouble)
        else:
            if self._checkpoints.has(f"step-{step}"):
                control.good_step = step
            trained_on = [rollout for rollout in rollouts if rollout.is_trained_on]
            numbers |= self._learner.update(trained_on, step, control.kl_coefficient)
            self._steer(numbers["objective/kl"])
        control.step += 1
        last = control.step == self._num_steps or bool(control.stopped)
        if last or control.step % self._config.rollout.held_out_every_steps == 0:
            numbers |= self._examine(control.step)
        self._log(numbers, rollouts)
        if last or control.stopped or trouble or control.step % self._config.save_every_steps == 0:
            self._save()

    # --- Bounds --------------------------------------------------------------------------------------------------

    def _steer(self, kl: float) -> None:
        config, control = self._config, self._control
        if config.kl_controller == "adaptive":
            control.kl_coefficient = adapt_kl_coefficient(
                control.kl_coefficient, kl, config.target_kl, config.global_batch_size, config.kl_horizon_episodes
            )

    def _out_of_bounds(self, rollouts: Sequence[Rollout]) -> str:
        """Say which bound the policy of these rollouts violates; an empty string if none."""
        kl, entropy = mean_kl(rollouts), token_entropy(rollouts)
        if self._config.max_kl is not None and not kl <= self._config.max_kl:
            return f"KL is {kl:.3g} nats per reply, above align.max_kl={self._config.max_kl:g}"
        if self._config.min_entropy is not None and not entropy >= self._config.min_entropy:
            return f"entropy is {entropy:.3g} nats per token, below align.min_entropy={self._config.min_entropy:g}"
        return ""

    def _go_back(self, trouble: str) -> None:
        """Return to the newest checkpoint within bounds, and double β or stop."""
        control = self._control
        stop = self._config.out_of_bounds == "stop" or control.num_rollbacks >= self._config.max_rollbacks
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

    def _examine(self, step: int) -> dict[str, Any]:
        """Score the policy on held-out prompts. Save it if it is the best so far, by the rewards or second judge."""
        control = self._control
        rollouts = self._collector.held_out(self._held_out)
        scores = [rollout.score - eos_penalty(rollout, self._config) for rollout in rollouts]
        kl = mean_kl(rollouts)
        objective = fmean(scores) - self._config.beta * kl
        rewards, right = [rollout.score for rollout in rollouts], self._second_judge.right(rollouts, step)
        point = HeldOutPoint(step=step, kl=kl, rewards=rewards, right=right)
        control.held_out.append(point.model_dump())
        share = point.share_right
        # The policy of step 0 is kept until a later policy within bounds is better.
        within = step == 0 or not self._out_of_bounds(rollouts)
        if is_best := within and objective > control.best_objective:
            control.best_objective, control.best_step = objective, step
        if is_best_by_judge := within and share is not None and share >= control.best_right:  # equal ones learnt more
            control.best_right, control.best_right_step = share, step
        if is_best or is_best_by_judge:
            self._checkpoints.save(f"best-{step}", {"weights": self._actors.state()})
        return {
            "held_out/scores": fmean(rewards),
            "held_out/kl": kl,
            "held_out/objective": objective,
            **({} if share is None else {"held_out/second_judge": share}),
            **self._check_second_judge(),
        }

    def _check_second_judge(self) -> dict[str, str]:
        """Stop, or only warn, where the second judge first falls while the reward rises. Returns what to log."""
        control, stop = self._control, self._config.stop_on_second_judge
        found = None if control.overoptimised else fall(control.points, control.best_right_step)
        if found is None:
            return {}
        control.overoptimised = found.said(self._second_judge.who)
        kept = f"the policy of step {control.best_right_step} is kept"
        if stop:
            control.best_step = control.best_right_step
            control.stopped = control.stopped or f"{control.overoptimised}; {kept}"
        if distributed.is_main():
            what = f"training stops, and {kept}" if stop else "align.stop_on_second_judge is false, so training goes on"
            warn(f"{control.overoptimised}; {what}.")
        return {"overoptimised": control.overoptimised}

    # --- Logging -------------------------------------------------------------------------------------------------

    def _log(self, numbers: dict[str, Any], rollouts: Sequence[Rollout]) -> None:
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
        if step % self._config.rollout.show_every_steps == 0 or step == self._num_steps:
            columns = ("step", "pool", "prompt", "reply", "ended", "score", "kl")
            rows = [(step, r.prompt.pool, r.prompt.request, r.text, r.ended, r.score, r.kl_nats) for r in rollouts[:16]]
            tracker.table("train/rollouts", columns, rows)

    def _metrics(self, resumed_from: int) -> Metrics:
        control = self._control
        scores = [row["objective/scores"] for row in control.history]
        rewards = {point.step: point.rewards for point in control.points}
        unreadable = [int(row[UNREADABLE]) for row in control.history if UNREADABLE in row]
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
            **({"num_unreadable_rewards": sum(unreadable)} if unreadable else {}),
            "held_out_scores": {"0": rewards[0], "best": rewards[control.best_step]},
            "second_judge": {
                "name": self._second_judge.who,
                "best_step": control.best_right_step,
                "stops": self._config.stop_on_second_judge,
                "overoptimised": control.overoptimised or None,
            },
        }

    # --- Checkpoints ---------------------------------------------------------------------------------------------

    def _save(self) -> None:
        control, meter = self._control, self._context.meter
        control.num_calls, control.num_tokens_written = meter.num_calls, meter.num_tokens_written
        control.usage = {name: asdict(used) for name, used in meter.usage.items()}
        state = {"weights": self._actors.state(), **self._learner.state(), "control": asdict(control)}
        self._checkpoints.save(f"step-{control.step}", state)
        self._checkpoints.keep("step", [control.step, control.good_step])
        self._checkpoints.keep("best", [control.best_step, control.best_right_step])

    def _resume(self) -> int:
        """Load the newest checkpoint; if there is none, score the initial policy and save it. Returns the step."""
        newest = self._checkpoints.newest("step")
        if newest is None:
            torch.manual_seed(derive_seed(self._context.seed, self._config.method))
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
        meter = self._context.meter
        meter.num_calls, meter.num_tokens_written = self._control.num_calls, self._control.num_tokens_written
        meter.usage = {name: Usage(**used) for name, used in self._control.usage.items()}

    def _restore_training(self, state: dict[str, Any]) -> None:
        self._restore_weights(state)
        self._learner.load_state(state)

    def _restore_weights(self, state: dict[str, Any]) -> None:
        self._actors.load_state(state["weights"])
