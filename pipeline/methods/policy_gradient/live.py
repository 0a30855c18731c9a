"""The engine that samples rollouts: what it may know of the policy, and what it can't do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigError
from pipeline.core.stage import Context
from pipeline.engines.base import ENGINES, Weights
from pipeline.engines.live import LiveEngine, LivePolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.chain.config import Config
    from pipeline.methods.policy_gradient.actors import Actors

FIELD = "policy_engine"


def live_engine(actors: Actors, context: Context) -> LiveEngine:
    """The configured engine over the policy of ``actors``."""

    @contextmanager
    def model() -> Iterator[PreTrainedModel]:
        with actors.gathered(), actors.policy() as policy:
            yield policy

    policy = LivePolicy(
        tokenizer=actors.tokenizer,
        model=model,
        base=Weights(path=str(context.folder("sft") / "model"), precision=context.model.precision, name="sft"),
        lora_rank=context.model.lora.rank,
        write_adapter=actors.write_adapter,
        folder=context.work / "rollouts",
    )
    return ENGINES[context.policy_engine.kind].over(context.policy_engine, policy, context.launch)


def check_live(config: Config) -> None:
    """Check before the run that the engine can sample from the policy while it is trained.

    Raises:
        ConfigError: it can't; the message names the field and the remedy.
    """
    engine, method = config.policy_engine, config.align.method
    kind = ENGINES[engine.kind]
    if not kind.runs_live_model:
        able = [name for name in ENGINES if ENGINES[name].runs_live_model]
        raise ConfigError(
            f"{FIELD}.kind is {engine.kind!r}, which can't sample from a model in training, but align={method} needs "
            f"it; use {FIELD}.kind={' or '.join(able)}."
        )
    if kind.takes_adapters:
        _check_adapter(config)
    engine.check_rollouts(FIELD, config.model.lora.rank, config.launch)
    judge = config.feedback_engine("preferences")
    if config.align.reward_judge is not None and kind.opens_one and judge.kind == engine.kind:
        raise ConfigError(
            f"{FIELD}.kind is {engine.kind!r} for rollouts and align.rewards.constitution is judged by "
            f"{engine.kind!r}, too; both would start again at every step: judge by engine=serve, or use "
            f"{FIELD}=hf or serve."
        )


def _check_adapter(config: Config) -> None:
    """Check that the policy is an adapter that an engine can run on the weights that the trainer has."""
    from pipeline.training.models import adapts_embeddings

    model, wanted = config.model, f"{FIELD}.kind={config.policy_engine.kind!r}"
    if model.tuning == "full":
        raise ConfigError(
            f"model.tuning is 'full', but {wanted} gets only an adapter after each update of align="
            f"{config.align.method}; use model.tuning=lora, or {FIELD}=hf."
        )
    if model.tuning == "qlora":
        raise ConfigError(
            f"model.tuning is 'qlora', which trains on weights in 4 bits, but {wanted} would sample the rollouts of "
            f"align={config.align.method} with weights that are not rounded so; use model.tuning=lora, or {FIELD}=hf."
        )
    if adapts_embeddings(model):
        raise ConfigError(
            f"model.lora.target_modules is {model.lora.target_modules!r}, which puts an adapter on the embeddings or "
            f"the output layer, but {wanted} takes adapters of inner layers only; use all-linear, or {FIELD}=hf."
        )
