"""``hf``: a local model through transformers, in this process. A resumed run gives the same results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError
from pipeline.engines.base import ENGINES, BatchEngine, Engine, EngineConfig, EngineKind, Weights
from pipeline.engines.live import LiveEngine, LivePolicy
from pipeline.engines.model_checks import check_model
from pipeline.engines.models import load_model, load_tokenizer, model_identity, resolve_path, short_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.engines.hf import HFEngine
    from pipeline.engines.streaming import Talking


class LocalConfig(EngineConfig):
    """Settings of an engine that runs a model in the stage's process."""

    path: str | None = None
    """A folder or a hub id; null: the model that is aligned."""

    @property
    def model_name(self) -> str | None:
        return None if self.path is None else short_name(self.path)

    @property
    def identity(self) -> str:
        return str(self.key_of("path"))

    @property
    def runs_weights(self) -> bool:
        return self.path is None

    @property
    def scores_replies(self) -> bool:
        return True

    def key_of(self, name: str) -> Any:
        """In the cache key the weights count by content, not by path."""
        return model_identity(self.path, None) if name == "path" and self.path else super().key_of(name)

    def weights_of(self, weights: Weights) -> Weights:
        """The engine's own model in the same number format, or ``weights`` if it has none."""
        if self.path is None:
            return weights
        return Weights(path=self.path, precision=weights.precision, name=short_name(self.path))

    def check(self, field: str) -> None:
        if self.path:
            check_model(self.path, None, f"{field}.path")


@ENGINES.add
class HF(EngineKind):
    """Generates and scores with transformers."""

    name = "hf"
    runs_live_model = True

    class Config(LocalConfig):
        """A local model."""

        kind: Literal["hf"] = "hf"
        """A local model through transformers."""
        quantization: Literal["int8"] | None = None
        """int8: the model of ``path`` computes in 8 bits, for a CPU without bf16; null: in its own number format."""

        def key(self) -> dict[str, Any]:
            """Without a quantisation that is not used, so that runs from before it was there are still known."""
            return {name: value for name, value in super().key().items() if name != "quantization" or value}

        def check(self, field: str) -> None:
            super().check(field)
            if self.quantization:
                from pipeline.engines.int8 import check_int8

                if self.path is None:
                    raise ConfigError(
                        f"{field}.quantization is int8, but {field}.path is not set, and the model that is aligned is "
                        f"never rounded: set {field}.path to the critic's folder, or leave {field}.quantization out."
                    )
                check_int8(f"{field}.quantization")

    @staticmethod
    def open(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
        assert isinstance(config, HF.Config)
        weights = config.weights_of(weights)
        path = resolve_path(weights.path)
        revision = None if Path(path).is_dir() else weights.revision
        model = load_model(path, "fp32" if config.quantization else weights.precision, revision)
        if config.quantization:
            from pipeline.engines.int8 import round_to_int8

            round_to_int8(model)
        return engine_over(model, load_tokenizer(path, revision), weights.name, launch)

    @staticmethod
    def over(config: EngineConfig, policy: LivePolicy, launch: LaunchConfig) -> LiveEngine:
        return _InMemory(policy, batch_limits(launch)[0])


def engine_over(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, launch: LaunchConfig
) -> BatchEngine:
    """An engine that runs a model in memory, with or without an adapter."""
    from pipeline.engines.hf import HFEngine

    rows, tokens = batch_limits(launch)
    return HFEngine(model, tokenizer, name=name, batch_rows=rows, batch_tokens=tokens)


class _InMemory(LiveEngine):
    """Samples from the trainer's own model."""

    def __init__(self, policy: LivePolicy, batch_rows: int) -> None:
        self._policy, self._batch_rows = policy, batch_rows

    @contextmanager
    def sampler(self) -> Iterator[HFEngine]:
        from pipeline.engines.hf import HFEngine

        with self._policy.model() as model:
            yield HFEngine(model, self._policy.tokenizer, name=self._policy.base.name, batch_rows=self._batch_rows)


def batch_limits(launch: LaunchConfig) -> tuple[int, int]:
    """The most rows of a batch, and the most tokens in its cache of keys and values."""
    import torch

    rows, tokens = (256, 262144) if torch.cuda.is_available() else (64, 32768)
    return launch.batch_rows or rows, tokens


def talking_engine(weights: Weights, launch: LaunchConfig) -> Talking:
    """Open a model that shows its replies while it draws them."""
    from pipeline.engines.hf import HFEngine

    engine = HF.open(HF.Config(), weights, launch)
    assert isinstance(engine, HFEngine)
    return engine
