"""Check that a path is a usable chat model, before its weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.core.errors import ConfigError, first_line
from pipeline.engines.models import EMBEDDED, can_only_be_local, generation_ends, load_tokenizer
from pipeline.records import Message


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
    elif can_only_be_local(path):
        raise ConfigError(f"{field}: there is no model folder {path}; give a folder, a hub id or 'embedded'.")
    else:
        _check_hub(path, revision, field)


def _check_folder(folder: Path, field: str) -> None:
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"{field}: {folder} has only an adapter; merge it into its base model (merge_and_unload in peft) and give "
            "that folder."
        )
    for name, remedy in (
        ("config.json", "give a folder written by save_pretrained"),
        ("tokenizer_config.json", "save the tokenizer in the same folder"),
    ):
        if not (folder / name).is_file():
            raise ConfigError(f"{field}: {folder} has no {name}; {remedy}.")
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
    check_weights(folder, field)
    _check_dialogue(str(folder), None, field)


def check_weights(folder: Path, field: str) -> list[Path]:
    """Read the headers of the weights' files; they show whether a file is damaged or incomplete.

    Returns:
        The files (none if the weights are in PyTorch's own format, whose headers aren't read).

    Raises:
        ConfigError: there are no weights, or a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise ConfigError(f"{field}: {folder} has no weights (*.safetensors); give a folder with a complete model.")
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{field}: {path} is damaged ({error}); copy or download it again.") from None
    return files


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
        raise ConfigError(
            f"{field}: the tokenizer of {path} can't render a dialogue ({first_line(error)}); correct its chat "
            "template."
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
        raise ConfigError(
            f"{field}: {path!r} is not a folder, and it could not be loaded from the hub ({first_line(error)}); check "
            "the id, go online, or download it and give the folder."
        ) from None
    if not tokenizer.chat_template:
        raise ConfigError(f"{field}: the tokenizer of {path!r} has no chat template; use an instruct model.")
    _check_dialogue(path, revision, field)
