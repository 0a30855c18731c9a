"""Ask the labeller, the reward models and the pair judge about pairs that people decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.core.stage import Context
from pipeline.engines.base import chooser
from pipeline.engines.models import short_name
from pipeline.engines.roles import feedback_engine
from pipeline.evals.accuracy import BASELINES, accuracy_by_kind, picked_pairs, shuffled
from pipeline.evals.cases import build_comparisons
from pipeline.evals.config import EvaluateConfig
from pipeline.evals.counted import Counted
from pipeline.evals.judges.base import Scores, by_rank
from pipeline.evals.judging import open_pair_judge
from pipeline.evals.labellers import labeller_scores, reward_scores
from pipeline.evals.results import PairAccuracy, Role
from pipeline.labellers.base import can_ask
from pipeline.records import Comparison

if TYPE_CHECKING:
    from pipeline.engines.reward_model import RewardModel


def own_reward_model(context: Context) -> RewardModel | None:
    """The reward model of this run, or None."""
    from pipeline.engines.reward_model import load_reward_model

    folder = context.folders.get("reward")
    if folder is None:
        return None
    return load_reward_model(str(folder / "model"), name="reward-stage", batch_rows=context.launch.batch_rows)


def all_accuracies(
    config: EvaluateConfig, context: Context, reward_model: RewardModel | None, counted: Counted, notes: list[str]
) -> list[PairAccuracy]:
    """How often labeller, reward models and pair judge agree with people, on the pairs of every suite."""
    pairs = [
        accuracy
        for name, comparisons in build_comparisons(config, notes).items()
        for accuracy in accuracies(name, comparisons, config, context, reward_model, counted)
    ]
    if pairs and not can_ask(context.labeller, context.engine):
        notes.append(
            f"The labeller {context.labeller.kind} was not asked about pairs that people decided: the engine "
            f"{context.engine.kind!r} returns no log-probabilities of given replies."
        )
    return pairs


def accuracies(
    suite: str,
    pairs: Sequence[Comparison],
    config: EvaluateConfig,
    context: Context,
    own_reward_model: RewardModel | None,
    counted: Counted,
) -> list[PairAccuracy]:
    """Accuracy of labeller, reward models, pair judge and baselines on pairs with human choices. ``counted`` gets what
    each picked."""
    from pipeline.engines.reward_model import load_reward_model

    shown, turned = shuffled(pairs)
    dataset = config.suite(suite).dataset
    found: list[PairAccuracy] = []

    def add(who: str, role: Role, scores: Scores) -> None:
        picked = picked_pairs(who, role, dataset, pairs, scores, turned)
        counted.pairs.append(picked)
        found.extend(accuracy_by_kind(picked, config.confidence))

    if can_ask(context.labeller, context.engine):
        engine = feedback_engine(context)
        scores = labeller_scores(context.labeller, context.constitution, engine, shown, context.seed, context, suite)
        add(f"{context.labeller.kind}:{chooser(engine)}", "labeller", scores)
        del engine
    if own_reward_model is not None:
        scores = reward_scores(own_reward_model, shown, context, f"{suite}-own-reward")
        add(own_reward_model.name, "reward model", scores)
    if config.reward_model is not None:
        rows = context.launch.batch_rows
        given = load_reward_model(config.reward_model, name=short_name(config.reward_model), batch_rows=rows)
        add(given.name, "reward model", reward_scores(given, shown, context, f"{suite}-reward"))
        del given
    judge = open_pair_judge(config, context, f"{suite}-judge", "pair judge on labelled pairs")
    add(judge.who, "judge", judge.prefer(shown))
    for name, rank in BASELINES.items():
        add(name, "baseline", by_rank(shown, rank))
    return found
