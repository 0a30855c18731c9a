"""``cai export``: a model in the form that another program reads, with its constitution, model card and licence."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.chain.checkpoints import find_checkpoint, name_of, read_config, run_of, slug
from pipeline.chain.config import Config
from pipeline.chain.runs import finished_tasks
from pipeline.constitution.files import load_constitution
from pipeline.core.errors import ConfigError, first_line
from pipeline.core.log import say
from pipeline.core.stage import ROUND
from pipeline.daily.licences import Licence, licence_of
from pipeline.engines.model_checks import check_model
from pipeline.engines.models import EMBEDDED, can_only_be_local, resolve_path, short_name

MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*config.json", "*.py"),
    *("token*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.jinja", "additional_chat_templates/*"),
)
"""What belongs to a model. Nothing else of its folder goes along."""


@dataclass(frozen=True)
class Source:
    """What is exported.

    ``base``: the model that it was made from, or the model itself where that is not known.
    """

    name: str
    folder: Path
    base: str
    run: Path | None
    licence: Licence
    config: Config | None


@dataclass(frozen=True, kw_only=True)
class Options:
    dtype: str = "f16"
    """The number format of a GGUF file."""
    system: bool = False
    """The Modelfile gives the model the principles as a system turn."""


def open_source(model: str, output_dir: str) -> Source:
    """Find a run, a model folder or a hub id.

    Raises:
        ConfigError: there is none, or it is no chat model.
    """
    path = find_checkpoint(model, output_dir, "MODEL")
    check_model(path, None, "MODEL")
    run = run_of(path)
    config = read_config(run) if run else None
    base = config.model.path if config else path
    folder = Path(resolve_path(path)) if path == EMBEDDED or can_only_be_local(path) else _download(path)
    return Source(run.name if run else slug(name_of(path)), folder.resolve(), base, run, licence_of(base), config)


def _download(hub_id: str) -> Path:
    """The folder of a hub model on this disk."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*MODEL_FILES]))
    except Exception as error:  # what a lost connection raises is another class in each version of the hub's library
        raise ConfigError(f"MODEL: {hub_id!r} could not be loaded from the hub ({first_line(error)}).") from error


def export(source: Source, target: str, output: Path, options: Options) -> None:
    """Write the export to the folder ``output``, which must not exist. If it fails, nothing is left of it.

    Args:
        target: a key of ``TARGETS``.

    Raises:
        ConfigError: the folder exists or can't be written, or the model can't be written in this form.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(f"--output: {output} already exists; give another folder, or remove it.")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        try:
            use = TARGETS[target](source, partial, options)
            _write_texts(source, partial, use.replace("{folder}", output.name))
            partial.rename(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {output} can't be written ({error.strerror or first_line(error)}); give another folder."
        ) from None


def _write_texts(source: Source, out: Path, use: str) -> None:
    """The card, the licence and the constitution."""
    card = source.run / "model_card.md" if source.run else source.folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {source.name}\n"
    licence = f"## Licence\n\n{source.licence.sentence}\n"
    (out / "README.md").write_text(f"{text.rstrip()}\n\n## Use it\n\n{use}\n\n{licence}", encoding="utf-8")
    for name, content in source.licence.files.items():
        (out / name).write_text(content, encoding="utf-8")
    if source.run:
        shutil.copyfile(source.run / "constitution.yaml", out / "constitution.yaml")


def _merged(source: Source, out: Path, _: Options) -> str:
    for path in sorted({path for pattern in MODEL_FILES for path in source.folder.glob(pattern)}):
        copy = out / path.relative_to(source.folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    if not any(out.glob("*.safetensors")):
        raise ConfigError(f"MODEL: {source.folder} has no *.safetensors; save the model with save_pretrained first.")
    return "A folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` of transformers."


def _vllm(source: Source, out: Path, options: Options) -> str:
    _merged(source, out, options)
    command = 'vllm serve "$(dirname "$0")" --served-model-name ' + shlex.quote(source.name)
    script = out / "serve.sh"
    script.write_text(f'#!/bin/sh\n# OpenAI\'s API on port 8000; further options are passed on.\nexec {command} "$@"\n')
    script.chmod(0o755)
    return f"`sh {{folder}}/serve.sh`, which is `vllm serve {{folder}} --served-model-name {source.name}`."


def _adapter(source: Source, out: Path, _: Options) -> str:
    from pipeline.training.joining import check_joined, join_adapters

    folders = adapters_of(source)
    assert source.config is not None
    model = source.config.model
    base = short_name(source.base)
    rank = join_adapters(folders, base, None if Path(source.base).is_dir() else model.revision, out)
    error = check_joined(out, model, source.folder)
    say(f"joined {len(folders)} adapters, rank {rank}: logits differ from the checkpoint's by {error:.1g} (relative)")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, out / name)
    embedded = source.base == EMBEDDED
    place = "str(embedded_model())" if embedded else repr(base)
    first = "from pipeline.engines.embedded import embedded_model  # of the package cai\n" if embedded else ""
    allowed = next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
    return (
        f"An adapter of PEFT with rank {rank} on `{base}`, the model that the run began with.\n\n```python\n{first}"
        f"base = AutoModelForCausalLM.from_pretrained({place})\n"
        'model = PeftModel.from_pretrained(base, "{folder}")\n```\n\n'
        f"vLLM: `vllm serve {'BASE' if embedded else base} --enable-lora --max-lora-rank {allowed} "
        f"--lora-modules {source.name}={{folder}}`."
    )


def adapters_of(source: Source) -> list[Path]:
    """The adapters of a run, in the order in which they were trained.

    Raises:
        ConfigError: it is no run, or not every stage that trained its policy trained an adapter.
    """
    if source.run is None or source.config is None:
        raise ConfigError("--to adapter needs a run, because a merged model has no adapter any more; use --to merged.")
    if source.config.model.tuning == "full":
        raise ConfigError("--to adapter: the run trained all weights (model.tuning=full); use --to merged.")
    finished = finished_tasks(source.run, source.config)
    folders = [folder for task, folder in finished.items() if task.partition(ROUND)[0] in ("sft", "align")]
    used = [folder.resolve() for folder in folders]
    if source.folder.parent in used:  # a later round may have been stopped
        used = used[: used.index(source.folder.parent) + 1]
    missing = [folder for folder in used if not (folder / "adapter").is_dir()]
    if missing or not used:
        raise ConfigError(f"--to adapter: a stage of {source.name} has no adapter; use --to merged.")
    return [folder / "adapter" for folder in used]


def _gguf(source: Source, out: Path, options: Options) -> str:
    from pipeline.daily.gguf import write_gguf

    file = f"{source.name}-{options.dtype}.gguf"
    write_gguf(source.folder, out / file, options.dtype, source.name, source.licence.spdx)
    return f"`llama-server -m {{folder}}/{file}` of llama.cpp, or another program that reads GGUF."


def _ollama(source: Source, out: Path, options: Options) -> str:
    from pipeline.chat import Renderer
    from pipeline.daily.ollama import modelfile
    from pipeline.engines.models import generation_ends, load_tokenizer

    if options.system and source.run is None:
        raise ConfigError("--system constitution needs a run, which has a constitution; leave it out.")
    _gguf(source, out, options)
    chat = Renderer(load_tokenizer(str(source.folder)), generation_ends(str(source.folder)))
    rules = load_constitution(source.run / "constitution.yaml") if source.run and options.system else None
    file = f"{source.name}-{options.dtype}.gguf"
    stops = sorted(chat.spelled([token]) for token in chat.stop_ids)
    (out / "Modelfile").write_text(modelfile(file, chat, stops, source.licence.sentence, rules), encoding="utf-8")
    return f"`cd {{folder}} && ollama create {source.name} && ollama run {source.name}`."


TARGETS: dict[str, Callable[[Source, Path, Options], str]] = {
    "merged": _merged,
    "adapter": _adapter,
    "gguf": _gguf,
    "ollama": _ollama,
    "vllm": _vllm,
}
"""How each is written; each returns a sentence on how to use it, with ``{folder}`` for its folder."""
