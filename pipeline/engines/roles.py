"""Who answers in which role: the policy's own replies, and feedback on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engines.base import Engine, Weights, open_engine

if TYPE_CHECKING:
    from pipeline.core.stage import Context

BASE = "base"  # the model before training, in records and tables


def base_weights(context: Context) -> Weights:
    model = context.model
    return Weights(path=model.path, revision=model.revision, precision=model.precision, name=BASE)


def policy_engine(context: Context, path: str, name: str) -> Engine:
    """An engine that writes the replies of a model of the chain: the base, or the folder of a later one."""
    model = context.model
    revision = model.revision if path == model.path else None
    weights = Weights(path=path, revision=revision, precision=model.precision, name=name)
    return open_engine(context.policy_engine, weights, context.launch)


def feedback_engine(context: Context, policy: Engine | None = None) -> Engine:
    """Who critiques and labels: the engine of the configuration, by default the model before training.

    Args:
        policy: the engine of that model, where it is open already.
    """
    if policy is not None and context.engine == context.policy_engine:
        return policy
    return open_engine(context.engine, base_weights(context), context.launch)
