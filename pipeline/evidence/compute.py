"""Estimates of a run's compute and energy, each with its assumption in words."""

from __future__ import annotations

from typing import Any

from pipeline.core.stage import stage_of
from pipeline.core.text import about_tokens
from pipeline.evidence.collect import RunRecord

NOT_KNOWN = "not known"
JOULES_PER_KWH = 3.6e6
WATTS = {"CPU": 100.0, "GPU": 700.0}  # assumed for one machine's CPUs, and for one GPU with its share of the machine
ON_SAMPLES = ("ppo", "rloo", "grpo")
FLOP_PER_TRAINED = 6  # for each parameter and token: forward and backward (Kaplan et al. 2020, arXiv 2001.08361)
FLOP_PER_WRITTEN = 2  # forward only


def training_flop(num_parameters: int, num_tokens: int) -> float:
    """6 · N · D (Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""
    return float(FLOP_PER_TRAINED) * num_parameters * num_tokens


def generation_flop(num_parameters: int, num_tokens: int) -> float:
    """2 · N · D, for the tokens that are written."""
    return float(FLOP_PER_WRITTEN) * num_parameters * num_tokens


def energy_kwh(busy_seconds: float, watts: float) -> float:
    return busy_seconds * watts / JOULES_PER_KWH


def compute_estimate(
    run: RunRecord, num_parameters: int | None, base_flop: float | None, watts: float | None
) -> dict[str, Any]:
    """The estimates as plain values; ``not known`` where something is missing.

    Args:
        base_flop: training compute of the model before; None: not known.
        watts: power while the run was busy; None: assumed by the kind of device.
    """
    trained = _trained_tokens(run)
    num_written = sum(manifest.num_tokens_written for manifest in run.manifests.values())
    busy = sum(manifest.busy_seconds for manifest in run.manifests.values())
    environment = run.manifests["evaluate"].environment
    device = environment.get("device", "CPU")
    kind = "CPU" if device.startswith("CPU") else "GPU"
    number = 1 if kind == "CPU" else int(environment.get("num_processes", "1"))
    power = watts if watts is not None else WATTS[kind] * number
    flop = training_flop(num_parameters, sum(trained.values())) if num_parameters else None
    return {
        "num_parameters": num_parameters or NOT_KNOWN,
        "trained_tokens": trained,
        "training_flop": flop if flop is not None else NOT_KNOWN,
        "training_flop_means": "6 · parameters · tokens (Kaplan et al. 2020). Tokens are estimated as characters / 4, "
        "times the epochs. Adapters need less, a reference model more; both are left out.",
        "generation_flop": generation_flop(num_parameters, num_written) if num_parameters else NOT_KNOWN,
        "generation_flop_means": "2 · parameters · tokens written by all models, as if each had this model's size; "
        "tokens read are left out.",
        "num_tokens_written": num_written,
        "base_training_flop": base_flop if base_flop is not None else NOT_KNOWN,
        "share_of_base_training": flop / base_flop if flop is not None and base_flop else NOT_KNOWN,
        "busy_seconds": busy,
        "device": device,
        "energy_kwh": energy_kwh(busy, power),
        "energy_means": f"{busy:.0f} busy seconds at {power:g} W"
        + ("" if watts is not None else ", which is assumed and was not measured"),
    }


def _trained_tokens(run: RunRecord) -> dict[str, int]:
    """Task → tokens that it trained on, over all epochs; tasks without rows on record are left out.

    A policy gradient trains on what it wrote.
    """
    found: dict[str, int] = {}
    pairs: list[dict[str, Any]] = []
    for task in run.manifests:
        stage = stage_of(task)
        if stage == "preferences":
            pairs = run.rows(task, "preferences.jsonl")
        settings = run.manifests[task].fields.get("config", {})
        epochs = float(settings.get("num_epochs") or settings.get("num_ppo_epochs") or 1)
        if stage == "align" and settings.get("method") in ON_SAMPLES:
            found[task] = round(run.manifests[task].num_tokens_written * epochs)
            continue
        if stage == "sft":
            texts = [text for row in run.rows(task, "rows.jsonl") for text in (*_turns(row), row["reply"])]
        elif stage in ("align", "reward") and pairs:
            texts = [text for row in pairs for side in "ab" for text in _pair(row["comparison"], side)]
        else:
            continue
        found[task] = round(about_tokens(*texts) * epochs)
    return found


def _turns(row: dict[str, Any]) -> list[str]:
    return [turn["content"] for turn in row["messages"]]


def _pair(comparison: dict[str, Any], side: str) -> list[str]:
    return [*_turns(comparison["prompt"]), comparison[f"reply_{side}"]]
