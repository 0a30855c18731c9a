"""Run probes of garak (Derczynski et al. 2024, arXiv 2406.11036), if it is installed.

Each probe runs in a separate garak process. So garak can be in another environment, a restart loses at most one probe,
and the settings and prompts of a probe do not depend on the other probes.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.core.cache import cache_key
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.log import Bar, warn
from pipeline.engines.models import hash_model

# garak contains their prompts, and their detectors look for phrases: they need no network and no second model.
DEFAULT_PROBES = (
    "dan.DanInTheWild",
    "grandma.Substances",
    "phrasing.PastTense",
    "promptinject.HijackHateHumans",
    "suffix.GCGCached",
)
NUM_PROMPTS = 16  # per probe; garak draws them by the seed, but some probes ignore this limit
MAX_TOKENS = 64
SEED = 0
REPORT = "garak.report.jsonl"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """A detector judged ``num_attempts`` replies; ``num_passed`` of them resisted the probe."""

    probe: str
    detector: str
    num_attempts: int
    num_passed: int


def garak_command() -> list[str] | None:
    """The command of garak: from ``CAI_GARAK``, else the installed module, else ``garak`` on the PATH, else None."""
    if named := shlex.split(os.environ.get("CAI_GARAK", "")):
        return named
    if find_spec("garak"):
        return [sys.executable, "-m", "garak"]
    executable = shutil.which("garak")
    return [executable] if executable else None


def check_garak() -> list[str]:
    """The command that starts garak.

    Raises:
        ConfigError: garak is not installed.
    """
    command = garak_command()
    if command is None:
        raise ConfigError(
            "evaluate.garak_probes: garak is not installed; run pip install garak, preferably in a separate "
            "environment, and set CAI_GARAK to its command, such as CAI_GARAK='garak-env/bin/python -m garak'."
        )
    return command


def run_garak(checkpoint: Path, probes: Sequence[str], out: Path, generations: int = 1) -> list[ProbeResult]:
    """Run probes on a model folder, offline, with ``generations`` replies per prompt (1: greedy).

    Each probe has a folder in ``out`` with garak's report, settings and log. A finished probe is reused if the model's
    content and the settings are the same.

    Raises:
        ConfigError: garak is not installed or cannot be started.
        StageError: garak has no result for a probe.
    """
    command = check_garak()
    identity = {"model": hash_model(checkpoint.resolve()), "settings": _settings(generations)}
    results: list[ProbeResult] = []
    num_unreadable = 0
    with Bar("garak", len(probes)) as bar:
        for probe in probes:
            folder = out / f"{probe}-{cache_key(identity)[:16]}"
            known = folder.exists()
            if not known:
                target = ["--target_name", str(checkpoint.resolve())]
                _run_probe([*command, *target], probe, _settings(generations), folder)
            found, unreadable = parse_report(folder / REPORT)
            results += found
            num_unreadable += unreadable
            bar.advance(cached=known)
    if num_unreadable:
        warn(f"{num_unreadable} line(s) of garak's reports in {out} could not be read; their results are missing.")
    return results


def parse_report(path: Path) -> tuple[list[ProbeResult], int]:
    """The results in garak's ``report.jsonl`` and the number of lines that could not be read."""
    results, num_unreadable, _ = _read(path)
    return results, num_unreadable


def _settings(generations: int) -> dict[str, Any]:
    """The configuration of garak. Its ``Pipeline`` uses the model's chat template if there is one."""
    import torch

    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", "bfloat16") if cuda else ("cpu", "float32")
    hf_args = {"device": device, "dtype": dtype, "do_sample": generations > 1}
    return {
        "run": {"seed": SEED, "generations": generations, "soft_probe_prompt_cap": NUM_PROMPTS},
        "plugins": {
            "target_type": "huggingface.Pipeline",
            "extended_detectors": False,
            "generators": {"huggingface": {"Pipeline": {"max_tokens": MAX_TOKENS, "hf_args": hf_args}}},
        },
    }


def _run_probe(command: list[str], probe: str, settings: dict[str, Any], folder: Path) -> None:
    """Run one probe in ``folder.partial``, and rename that folder when garak has finished.

    garak's exit code is 0 even if it cannot find or load the probe or the model, so its report is checked, too.
    """
    partial = folder.with_name(f"{folder.name}.partial").resolve()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    report, log, config = partial / REPORT, partial / "garak.log", partial / "settings.json"
    reporting = {"report_dir": str(partial), "report_prefix": REPORT.removesuffix(".report.jsonl")}
    config.write_text(json.dumps(settings | {"reporting": reporting}, indent=2), encoding="utf-8")
    command = [*command, "--spec", f"probes.{probe}", "--config", str(config)]
    environment = os.environ | OFFLINE | {"GARAK_LOG_FILE": str(log)}
    with log.open("ab") as file:  # append: garak writes to it, too
        try:
            code = subprocess.call(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        except OSError as error:
            raise ConfigError(
                f"garak cannot be started with {command[0]!r} ({error.strerror}); check CAI_GARAK."
            ) from None
    results, _, complete = _read(report) if report.exists() else ([], 0, False)
    if code != 0 or not complete or not any(result.num_attempts for result in results):
        raise StageError(f"garak has no result for {probe} (exit code {code}); see the end of {log}.")
    partial.rename(folder)


def _read(path: Path) -> tuple[list[ProbeResult], int, bool]:
    """The results, the number of lines that could not be read, and whether garak finished."""
    results, num_unreadable, complete = [], 0, False
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
            complete = complete or row["entry_type"] == "completion"
            if row["entry_type"] == "eval":
                counts = {"num_attempts": int(row["total_evaluated"]), "num_passed": int(row["passed"])}
                results.append(ProbeResult(probe=row["probe"], detector=row["detector"], **counts))
        except (ValueError, KeyError, TypeError):
            num_unreadable += 1
    return results, num_unreadable, complete
