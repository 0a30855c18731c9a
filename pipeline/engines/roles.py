"""Open the engine for each role: the policy writes replies, the feedback model critiques and labels them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engines.base import Engine, Weights, open_engine

if TYPE_CHECKING:
    from pipeline.core.stage import Context

BASE = "base"  # the model before training, in records and tables


def base_weights(context: Context) -> Weights:
    model = context.model
    return Weights(path=model.path, revision=model.revision, precision=model.precision, name=BASE)


def weights_of(context: Context, path: str, name: str) -> Weights:
    """A model of the chain: the base model, or the folder of a trained one."""
    model = context.model
    revision = model.revision if path == model.path else None
    return Weights(path=path, revision=revision, precision=model.precision, name=name)


def policy_engine(context: Context, path: str, name: str) -> Engine:
    """Open an engine that generates with a model of the chain: the base model, or the folder of a trained one."""
    return open_engine(context.policy_engine, weights_of(context, path, name), context.launch)


def feedback_engine(context: Context, policy: Engine | None = None) -> Engine:
    """Open the engine that critiques and labels: the configured one, by default with the model before training.

    Args:
        policy: an open engine for that model; it is used again if the settings are the same.
    """
    if policy is not None and context.engine == context.policy_engine:
        return policy
    del policy  # the next model needs its room
    return open_engine(context.engine, base_weights(context), context.launch)
