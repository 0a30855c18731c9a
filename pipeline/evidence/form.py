"""The items of the Model Documentation Form (EU Code of Practice for general-purpose AI models, July 2025, chapter on
transparency), filled in from a run as far as it knows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.stage import stage_of
from pipeline.evidence.collect import RunRecord

OPEN = "to be filled in by the provider"


def documentation_form(
    run: RunRecord,
    created: str,
    checkpoint: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    compute: Mapping[str, Any],
    architecture: str | None,
    context_tokens: int | None,
) -> dict[str, dict[str, Any]]:
    """Section → item → what the run says, or ``OPEN``."""
    return {
        **_model(run, checkpoint, compute, architecture, context_tokens),
        **_training(run, data, compute),
        "Form": {"Drawn up on": created[:10], "Drawn up by": OPEN},
    }


def _model(
    run: RunRecord,
    checkpoint: Mapping[str, Mapping[str, Any]],
    compute: Mapping[str, Any],
    architecture: str | None,
    context_tokens: int | None,
) -> dict[str, dict[str, Any]]:
    """What the model is, and what it is for."""
    weights = {name: facts["sha256"] for name, facts in checkpoint.items() if name.endswith(".safetensors")}
    size = f"{context_tokens} tokens, request and reply together" if context_tokens else OPEN
    packages = run.manifests["evaluate"].environment
    return {
        "General information": {
            "Provider": OPEN,
            "Model name": run.name,
            "Model authenticity": {"SHA-256 of the weights": weights} if weights else OPEN,
            "Release date": OPEN,
            "Date of placing on the Union market": OPEN,
            "Model dependencies": f"fine-tuned from {run.base_model}",
        },
        "Model properties": {
            "Architecture": architecture or OPEN,
            "Design": f"constitution {run.constitution.name} {run.constitution.version}; "
            f"method {run.config['align']['method']}; tuning {run.config['model']['tuning']}",
            "Input modalities": "text",
            "Maximum size of the input": size,
            "Output modalities": "text",
            "Maximum size of the output": size,
            "Total size": f"{compute['num_parameters']} parameters",
        },
        "Methods of distribution and licences": {"Distribution channels": OPEN, "Licence": OPEN},
        "Use": {
            "Acceptable use policy": OPEN,
            "Intended uses": run.constitution.description,
            "Types of systems for which it is meant": OPEN,
            "Technical means of integration": "a folder in the layout of Hugging Face transformers",
            "Required hardware": OPEN,
            "Required software": f"transformers {packages.get('transformers', '')}".strip(),
        },
    }


def _training(run: RunRecord, data: Mapping[str, Any], compute: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How it was made: steps, data, computation and energy."""
    trained = [task for task in run.manifests if stage_of(task) in ("sft", "reward", "align")]
    return {
        "Training process": {
            "Steps": {task: run.manifests[task].metrics.get("num_steps", "see manifests/") for task in trained},
            "Design choices and reasons": "manifests/ has the settings, constitution.yaml what they are to achieve",
        },
        "Data used for training, testing and validation": {
            "Type": "text",
            "Provenance": [f"{source['name']}: {source['source']}" for source in data["sources"]],
            "How it was obtained and selected": "data.json and manifests/",
            "Number of data points": f"{data['num_rows']} for training, {data['num_evaluated_requests']} for testing",
            "Scope and main characteristics": data["synthetic_share_means"],
            "Synthetic share": data["synthetic_share"] if data["synthetic_share"] is not None else OPEN,
            "Curation": "duplicates, empty rows and overlaps with test prompts are left out and counted (manifests/)",
            "Measures against unsuitable data": OPEN,
            "Measures against biases": "the bias suite of the evaluation (results.json)",
        },
        "Computational resources used in training": {
            "Training time": f"{compute['busy_seconds']:.0f} s on {compute['device']}",
            "Amount of computation (FLOP)": compute["training_flop"],
            "Share of the base model's computation": compute["share_of_base_training"],
            "How it was estimated": compute["training_flop_means"],
        },
        "Energy consumption, in training and inference": {
            "Energy (kWh)": compute["energy_kwh"],
            "How it was estimated": compute["energy_means"],
            "Computation of inference (FLOP), measured on a benchmark": OPEN,
        },
    }
