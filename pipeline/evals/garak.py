"""Probes of garak (Derczynski et al. 2024, arXiv 2406.11036), where it is installed.

garak runs in a process of its own, one a probe: it can live in another environment, a restart loses one probe at most,
no probe changes the next one's settings, and the prompts drawn for a probe don't depend on the other probes.
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

from pipeline.core.cache import cache_key, hash_folder
from pipeline.core.errors import ConfigError, StageError
from pipeline.core.log import Bar, warn

# Their prompts ship with garak and their detectors look for phrases: no network, no second model.
DEFAULT_PROBES = (
    "dan.DanInTheWild",
    "grandma.Substances",
    "phrasing.PastTense",
    "promptinject.HijackHateHumans",
    "suffix.GCGCached",
)
NUM_PROMPTS = 16  # a probe: garak draws as many by the seed; some probes know no such cap
MAX_TOKENS = 64
SEED = 0
REPORT = "garak.report.jsonl"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Of ``num_attempts`` replies that a detector could judge, the model withstood in ``num_passed``."""

    probe: str
    detector: str
    num_attempts: int
    num_passed: int


def garak_command() -> list[str] | None:
    """How to start garak here: as ``CAI_GARAK`` says, as a module, or from the path. None where there is none."""
    if named := shlex.split(os.environ.get("CAI_GARAK", "")):
        return named
    if find_spec("garak"):
        return [sys.executable, "-m", "garak"]
    executable = shutil.which("garak")
    return [executable] if executable else None


def check_garak() -> list[str]:
    """The command that starts garak.

    Raises:
        ConfigError: there is none.
    """
    command = garak_command()
    if command is None:
        raise ConfigError(
            "evaluate.garak_probes: garak is not installed; pip install garak, best into an environment of its own, "
            "and name its command in the variable CAI_GARAK, such as CAI_GARAK='garak-env/bin/python -m garak'."
        )
    return command


def run_garak(checkpoint: Path, probes: Sequence[str], out: Path, generations: int = 1) -> list[ProbeResult]:
    """Run probes against a model folder, offline, greedily where ``generations`` is 1.

    Each probe gets a folder below ``out`` with garak's report, settings and log; a finished one is reused where the
    model's content and the settings are the same.

    Raises:
        ConfigError: garak is not installed, or can't be started.
        StageError: garak has no result for a probe.
    """
    command = check_garak()
    identity = {"model": hash_folder(checkpoint.resolve()), "settings": _settings(generations)}
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
    """garak's configuration. Its ``Pipeline`` applies the model's chat template where it has one."""
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
    """Run one probe in ``folder.partial`` and rename that when garak has finished.

    garak's exit code is 0 even where it knows no such probe or can't load it or the model: its report decides, too.
    """
    partial = folder.with_name(f"{folder.name}.partial").resolve()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    report, log, config = partial / REPORT, partial / "garak.log", partial / "settings.json"
    reporting = {"report_dir": str(partial), "report_prefix": REPORT.removesuffix(".report.jsonl")}
    config.write_text(json.dumps(settings | {"reporting": reporting}, indent=2), encoding="utf-8")
    command = [*command, "--spec", f"probes.{probe}", "--config", str(config)]
    environment = os.environ | OFFLINE | {"GARAK_LOG_FILE": str(log)}
    with log.open("ab") as file:  # garak appends to it, too
        try:
            code = subprocess.call(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        except OSError as error:
            raise ConfigError(f"garak can't be started by {command[0]!r} ({error.strerror}); see CAI_GARAK.") from None
    results, _, complete = _read(report) if report.exists() else ([], 0, False)
    if code != 0 or not complete or not any(result.num_attempts for result in results):
        raise StageError(f"garak has no result for {probe} (exit code {code}); the end of {log} says why.")
    partial.rename(folder)


def _read(path: Path) -> tuple[list[ProbeResult], int, bool]:
    """Results, number of lines that could not be read, and whether garak came to its end."""
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
