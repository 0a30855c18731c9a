"""A CycloneDX 1.7 bill of materials of the model (https://cyclonedx.org/docs/1.7/json/), as plain JSON."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pipeline import __version__
from pipeline.evals.results import Estimate
from pipeline.evidence.collect import RunRecord

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def bill_of_materials(
    run: RunRecord,
    created: str,
    checkpoint: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    energy_kwh: float,
    architecture: str | None,
) -> dict[str, Any]:
    """The model with its card, the model before training, the generated data, and the libraries."""
    libraries = [_library(name, run.manifests["evaluate"].environment.get(name)) for name in PACKAGES]
    datasets = [_dataset(file) for file in data["files"]]
    base: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": "base", "name": run.base_model}
    parts = [base, *datasets, *[library for library in libraries if library]]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{run.name} {created}')}",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "tools": {"components": [{"type": "application", "name": "cai", "version": __version__}]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": f"{run.name} ({run.results.models[-1]})",
                "version": run.constitution.version,
                "components": [_file(name, facts) for name, facts in checkpoint.items()],
                "modelCard": _card(run, datasets, energy_kwh, architecture),
            },
        },
        "components": parts,
        "dependencies": [{"ref": "model", "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _card(
    run: RunRecord, datasets: list[dict[str, Any]], energy_kwh: float, architecture: str | None
) -> dict[str, Any]:
    stages = [task for task in ("sft", "align") if run.newest(task)]
    parameters: dict[str, Any] = {
        "approach": {"type": "reinforcement-learning" if "align" in stages else "supervised"},
        "task": "text-generation",
        "datasets": [{"ref": dataset["bom-ref"]} for dataset in datasets],
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if architecture:
        parameters["modelArchitecture"] = architecture
    last = run.results.models[-1]
    metrics = [_metric(name, found) for name, found in run.results.measures[last].items() if found.value is not None]
    training = {"activity": "training", "energyProviders": [], "activityEnergyCost": _kwh(energy_kwh)}
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {
            "technicalLimitations": [
                "Each rate is about these requests and this judge only; the judge's accuracy is in results.json."
            ],
            "environmentalConsiderations": {"energyConsumptions": [training]} if energy_kwh else {},
        },
    }


def _kwh(number: float) -> dict[str, Any]:
    return {"value": number, "unit": "kWh"}


def _metric(name: str, found: Estimate) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": name, "value": repr(found.value)}
    if found.low is not None and found.high is not None:
        metric["confidenceInterval"] = {"lowerBound": repr(found.low), "upperBound": repr(found.high)}
    return metric


def _dataset(file: Mapping[str, Any]) -> dict[str, Any]:
    share = f"{file['num_rows_written_by_a_model']} of {file['num_rows']} rows were written by a model"
    return {
        "type": "data",
        "bom-ref": f"data:{file['file']}",
        "name": file["file"],
        "description": f"Generated training data; {share}.",
        **({"hashes": [_sha256(file["sha256"])]} if file["sha256"] else {}),
    }


def _file(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_sha256(facts["sha256"])]}


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _library(name: str, version: str | None) -> dict[str, Any] | None:
    if version is None:
        return None
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
