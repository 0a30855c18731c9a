"""Rewards: one interface for reward models, the constitution's judge and the user's functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.constitution.schema import Constitution
from pipeline.core.counts import warn_of_share
from pipeline.core.errors import CaiError, StageError
from pipeline.core.log import Meter
from pipeline.core.stage import Context
from pipeline.core.user_functions import load_function
from pipeline.engines.base import Engine
from pipeline.engines.reward_model import RewardModel, load_reward_model, scoring_precision
from pipeline.engines.roles import feedback_engine
from pipeline.engines.worklist import score_now
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller, sigmoid
from pipeline.methods.base import CONSTITUTION, GROUP_VARIANCE, REWARD_MODEL, AlignConfig
from pipeline.records import Message, Preference, Prompt, derived_rng, dialogue_key

RewardFunction = Callable[[Sequence[list[Message]], Sequence[str]], Sequence[float]]
"""(prompts, completions) → one reward per completion. A prompt is a dialogue that ends with a user turn."""


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """``totals``: one reward per completion. ``parts``: name → rewards before they are weighted.

    ``unreadable``: whether no answer of the constitution's judge on this completion could be read; its part is then 0.
    """

    totals: list[float]
    parts: dict[str, list[float]]
    unreadable: list[bool]


class WeightedSum:
    """Σ weight · reward over named rewards.

    Args:
        parts: name → (weight, function).
    """

    def __init__(self, parts: Mapping[str, tuple[float, RewardFunction]]) -> None:
        assert parts, "the configuration asks for at least one reward"
        self.parts = dict(parts)

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> Rewarded:
        found = {
            name: checked(name, function, prompts, completions) if completions else []
            for name, (_, function) in self.parts.items()
        }
        totals = [
            math.fsum(weight * found[name][row] for name, (weight, _) in self.parts.items())
            for row in range(len(completions))
        ]
        judge = self.parts[CONSTITUTION][1] if CONSTITUTION in self.parts else None
        unreadable = judge.unreadable if isinstance(judge, ConstitutionReward) else [False] * len(completions)
        return Rewarded(totals=totals, parts=found, unreadable=unreadable if completions else [])


def checked(
    name: str, function: RewardFunction, prompts: Sequence[list[Message]], completions: Sequence[str]
) -> list[float]:
    """Call a reward function and check that it returns one finite number per completion.

    Raises:
        StageError: the function fails or returns something else; the message names the reward.
    """
    try:
        rewards = [float(reward) for reward in function(prompts, completions)]
    except CaiError:
        raise
    except (Exception, SystemExit) as error:  # a user's function may raise anything, or call sys.exit
        if name in (REWARD_MODEL, CONSTITUTION):
            raise  # our own code: the runner explains a lack of memory, and other errors keep their traceback
        raise StageError(
            f"align.rewards.{name} failed on {len(completions)} completions ({type(error).__name__}: {error}); "
            "fix the function, or set its weight to 0."
        ) from error
    if len(rewards) != len(completions):
        raise StageError(
            f"align.rewards.{name} gave {len(rewards)} rewards for {len(completions)} completions; return one reward "
            "per completion."
        )
    bad = next((row for row, reward in enumerate(rewards) if not math.isfinite(reward)), None)
    if bad is not None:
        raise StageError(
            f"align.rewards.{name} gave {rewards[bad]} for the completion {completions[bad][:60]!r}; return finite "
            "numbers."
        )
    return rewards


def make_rewards(
    config: AlignConfig, prompts: Sequence[Prompt], context: Context, reward_model: RewardModel | None = None
) -> WeightedSum:
    """Make the weighted sum of the configured rewards of single replies (all but ``group_variance``).

    Args:
        prompts: all prompts that the rewards will be called with.
        reward_model: the reward stage's model if it is already in memory.
    """

    def function(name: str) -> RewardFunction:
        if name == REWARD_MODEL:
            path = config.reward_model or str(context.folder("reward") / "model")
            return (reward_model or load_reward_model(path, dtype=scoring_precision(context.model.precision))).score
        if name == CONSTITUTION:
            judge, engine = config.reward_judge, feedback_engine(context)
            assert judge is not None
            return ConstitutionReward(engine, judge, context.constitution, prompts, context.seed, context.meter)
        return load_function(config.functions[name], f"align.functions.{name}")

    alone = {name: weight for name, weight in config.rewards.items() if name != GROUP_VARIANCE}  # of single replies
    return WeightedSum({name: (weight, function(name)) for name, weight in alone.items()})


def relabelled(preferences: Sequence[Preference], rewards: WeightedSum) -> list[Preference]:
    """The same pairs, with σ(reward of A − reward of B) as the label instead of the labeller's."""
    prompts = [preference.comparison.prompt.messages for preference in preferences]
    rewarded_a, rewarded_b = (
        rewards(prompts, [getattr(preference.comparison, side) for preference in preferences])
        for side in ("reply_a", "reply_b")
    )
    unreadable = [*rewarded_a.unreadable, *rewarded_b.unreadable]
    warn_of_unreadable_rewards(sum(unreadable), len(unreadable))
    return [
        preference.model_copy(update={"probability_a": sigmoid(reward_a - reward_b), "labeller": "rewards"})
        for preference, reward_a, reward_b in zip(preferences, rewarded_a.totals, rewarded_b.totals, strict=True)
    ]


def warn_of_unreadable_rewards(num_unreadable: int, num_rewarded: int) -> bool:
    """Warn if the constitution's judge can't be read on many replies, and say whether. Raises StageError if on all."""
    return warn_of_share(
        num_unreadable,
        num_rewarded,
        "replies have the constitution's reward 0 because no answer of the judge on them can be read",
        "use another judge (engine or align.judge), or set align.rewards.constitution=0",
    )


class ConstitutionReward:
    """Rewards single replies with the constitution's judge: the mean logit over principles sampled for the prompt.

    Args:
        prompts: all prompts that it may be called with; a prompt's pool decides which principles apply.
    """

    def __init__(
        self,
        engine: Engine,
        config: LabellerConfig,
        constitution: Constitution,
        prompts: Sequence[Prompt],
        seed: int,
        meter: Meter,
    ) -> None:
        self._engine, self._config, self._constitution, self._seed = engine, config, constitution, seed
        self._meter = meter
        labeller = LABELLERS[config.kind](config, constitution, seed)
        assert isinstance(labeller, ReplyLabeller), "the configuration names a judge of single replies"
        self._labeller = labeller
        self._prompts = {prompt.key: prompt for prompt in prompts}
        self.unreadable: list[bool] = []
        """Of the last call: for each completion, whether no answer on it could be read."""

    def __call__(self, prompts: Sequence[list[Message]], completions: Sequence[str]) -> list[float]:
        asked = []
        for row, (messages, reply) in enumerate(zip(prompts, completions, strict=True)):
            prompt = self._prompts[dialogue_key(messages)]
            rng = derived_rng(self._seed, prompt.key, "labels")
            drawn = self._constitution.sample(prompt.pool, self._config.num_principles, rng)
            principles = list({principle.id: principle for principle in drawn}.values())
            asked.append([self._labeller.ask(str(row), "reply", prompt, reply, rule) for rule in principles])
        queries: dict[str, Any] = {query.id: query for row in asked for some in row for query in some}
        answers = score_now(self._engine, list(queries.values()), self._meter)
        means = [_mean([self._labeller.reply_logit(some, answers) for some in row]) for row in asked]
        self.unreadable = [mean is None for mean in means]
        return [self._config.logit_scale * (mean or 0.0) for mean in means]


def _mean(logits: Sequence[float | None]) -> float | None:
    """The mean of the readable logits; None if none could be read."""
    known = [logit for logit in logits if logit is not None]
    return math.fsum(known) / len(known) if known else None
