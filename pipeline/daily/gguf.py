"""Write a checkpoint as one GGUF file, which llama.cpp and what is built on it read.

Names of tensors and settings are those of the library ``gguf``, which llama.cpp's project maintains. The weights are
read and written one by one, so a model needs no more memory than its largest weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from safetensors import safe_open

from pipeline.chat import Renderer
from pipeline.core.errors import ConfigError
from pipeline.daily.gguf_tokenizer import add_tokenizer
from pipeline.engines.models import generation_ends, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
FORMATS = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


@dataclass(frozen=True)
class Source:
    """A weight of the checkpoint: its name and shape in the file, and how to read it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def check_gguf(folder: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint that can be written as GGUF. Raises ConfigError for another one."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    remedy = "use --to merged, and llama.cpp's convert_hf_to_gguf.py on that folder"
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"--to gguf writes models of the kinds {', '.join(ARCHITECTURES)}, and this is {config.model_type!r}; "
            f"{remedy}."
        )
    if (kind := config.rope_parameters["rope_type"]) not in ("default", "llama3"):
        raise ConfigError(f"--to gguf: positions scaled by {kind!r} are not known here; {remedy}.")
    if getattr(config, "use_sliding_window", False):
        raise ConfigError(f"--to gguf: attention in a sliding window is not known here; {remedy}.")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"--to gguf: {folder} has no *.safetensors; save the model with save_pretrained first.")
    return config


def write_gguf(folder: Path, out: Path, dtype: str, name: str, licence: str | None) -> None:
    """Write the checkpoint in ``folder`` to the file ``out``.

    Args:
        dtype: of matrices, a key of ``FORMATS``. Vectors are always in 32 bits.
        licence: its SPDX id, if known.

    Raises:
        ConfigError: the model's kind, its tokenizer or a weight is not supported.
    """
    config = check_gguf(folder)
    arch = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    _add_settings(writer, config, name, licence)
    writer.add_file_type(FORMATS[dtype][1])
    tokenizer = load_tokenizer(str(folder))
    ends = Renderer(tokenizer, generation_ends(str(folder))).end_ids
    add_tokenizer(writer, tokenizer, config.vocab_size, ends)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    with ExitStack() as files:
        sources: list[tuple[Source, gguf.GGMLQuantizationType]] = []
        for source in _sources(folder, config, files):
            target = names.get_name(source.name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise ConfigError(
                    f"--to gguf: llama.cpp has no place for the weight {source.name}; use --to merged, and llama.cpp's "
                    "convert_hf_to_gguf.py on that folder."
                )
            kind = format_of(source.shape, FORMATS[dtype][0])
            shape = gguf.quant_shape_to_byte_shape(source.shape, kind)
            writer.add_tensor_info(target, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kind)
            sources.append((source, kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for source, kind in sources:
            array = _in_order_of_llama(source, config).float().contiguous().numpy()
            writer.write_tensor_data(np.ascontiguousarray(gguf.quants.quantize(array, kind)).view(np.uint8))
    writer.close()


def format_of(shape: tuple[int, ...], wanted: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """Vectors stay in 32 bits; rows that don't divide into blocks are in 16 bits."""
    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType.F16 if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] else wanted


def _add_settings(writer: gguf.GGUFWriter, config: PreTrainedConfig, name: str, licence: str | None) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    head_dim = _head_dim(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _sources(folder: Path, config: PreTrainedConfig, files: ExitStack) -> Iterator[Source]:
    """Every weight of the model once: a tied output matrix is left out, as llama.cpp ties it itself."""
    for path in sorted(folder.glob("*.safetensors")):
        opened: Any = files.enter_context(safe_open(path, framework="pt"))
        for name in opened.keys():  # noqa: SIM118 - it is no dict
            if not (config.tie_word_embeddings and name == "lm_head.weight"):
                shape = tuple(opened.get_slice(name).get_shape())
                yield Source(name, shape, lambda opened=opened, name=name: opened.get_tensor(name))  # type: ignore[misc]
    if config.rope_parameters["rope_type"] == "llama3":
        factors = rope_factors(config)
        yield Source("rope_freqs.weight", tuple(factors.shape), lambda: factors)


def rope_factors(config: PreTrainedConfig) -> torch.Tensor:
    """By how much Llama 3 slows each rotation down, shape (head_dim / 2,)."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    dims = torch.arange(0, _head_dim(config), 2, dtype=torch.float32) / _head_dim(config)
    return 1 / (config.rope_parameters["rope_theta"] ** dims) / slowed


def _in_order_of_llama(source: Source, config: PreTrainedConfig) -> torch.Tensor:
    """A weight with its rows as llama.cpp wants them.

    For Llama, it rotates neighbours (0, 1), (2, 3), …; transformers rotates the halves of a head, (0, d/2), ….
    """
    weight = source.read()
    if config.model_type != "llama" or (".self_attn.q_proj." not in source.name and ".k_proj." not in source.name):
        return weight
    num_heads = config.num_attention_heads if ".q_proj." in source.name else config.num_key_value_heads
    return interleave(weight, num_heads)


def interleave(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Order the rows of each head 0, d/2, 1, d/2 + 1, …; shape (num_heads · d, …)."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)
