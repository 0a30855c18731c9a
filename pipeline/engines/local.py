"""``hf``: a local model through transformers, in this process. A resumed run gives the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pipeline.core.distributed import LaunchConfig
from pipeline.engines.base import ENGINES, Engine, EngineConfig, EngineKind, Weights
from pipeline.engines.models import check_model, load_model, load_tokenizer, model_identity, resolve_path, short_name


@ENGINES.add
class HF(EngineKind):
    """Generates and scores with transformers."""

    name = "hf"
    runs_live_model = True

    class Config(EngineConfig):
        """A local model."""

        kind: Literal["hf"] = "hf"
        """A local model through transformers."""
        path: str | None = None
        """A folder or a hub id; null: the model that is aligned."""

        @property
        def model_name(self) -> str | None:
            return None if self.path is None else short_name(self.path)

        @property
        def runs_weights(self) -> bool:
            return self.path is None

        @property
        def scores_replies(self) -> bool:
            return True

        def key_of(self, name: str) -> Any:
            """In the cache key the weights count by content, not by path."""
            return model_identity(self.path, None) if name == "path" and self.path else super().key_of(name)

        def check(self, field: str) -> None:
            if self.path:
                check_model(self.path, None, f"{field}.path")

    @staticmethod
    def open(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
        import torch

        from pipeline.engines.hf import HFEngine

        assert isinstance(config, HF.Config)
        if config.path is not None:
            weights = Weights(path=config.path, precision=weights.precision, name=short_name(config.path))
        path = resolve_path(weights.path)
        revision = None if Path(path).is_dir() else weights.revision
        rows, tokens = (256, 262144) if torch.cuda.is_available() else (64, 32768)
        return HFEngine(
            load_model(path, weights.precision, revision),
            load_tokenizer(path, revision),
            name=weights.name,
            batch_rows=launch.batch_rows or rows,
            batch_tokens=tokens,
        )

    @staticmethod
    def over(model: Any, tokenizer: Any, launch: LaunchConfig) -> Any:
        import torch

        from pipeline.engines.hf import HFEngine

        rows = launch.batch_rows or (256 if torch.cuda.is_available() else 64)
        return HFEngine(model, tokenizer, name="policy", batch_rows=rows)
