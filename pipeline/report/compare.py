"""Several runs side by side: their evaluation tables, aligned models against each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import Manifest
from pipeline.errors import ArtifactError
from pipeline.evals.summary import MEASURES, change


def write_comparison(folders: Sequence[Path], labels: Sequence[str], out: Path) -> Path:
    """Write a Markdown table of the runs' base, SFT and aligned models; returns its path."""
    manifests = [_evaluation(folder) for folder in folders]
    tables = [manifest.metrics["table"] for manifest in manifests]
    prompts = {manifest.identity["inputs"]["prompts"] for manifest in manifests}
    same = len(prompts) == 1 and len({json.dumps(m.identity["config"], sort_keys=True) for m in manifests}) == 1
    lines = ["# Comparison", ""]
    lines += [
        f"- run {number}: `{folder.resolve().name}` ({label})" for number, (folder, label) in _numbered(folders, labels)
    ]
    lines += ["", "Rates with their intervals and the number of prompts; each run is set against the first one.", ""]
    if not same:
        lines += ["**The runs were evaluated on different prompts or settings; differences may come from there.**", ""]
    numbers = range(1, len(folders) + 1)
    lines.append(
        "| aligned model | "
        + " | ".join(f"run {n}" for n in numbers)
        + " | "
        + " | ".join(f"{n} against 1" for n in numbers if n > 1)
        + " |"
    )
    lines.append("| --- " * (2 * len(folders)) + "|")
    for name, (title, _, lower) in MEASURES.items():
        cells = [table["aligned"][name]["text"] for table in tables]
        changes = [change(tables[0]["aligned"][name], table["aligned"][name], lower) for table in tables[1:]]
        lines.append(f"| {title} | " + " | ".join([*cells, *changes]) + " |")
    for name, title in (("reply_tokens_mean", "Tokens a reply, mean"), ("distinct_bigrams", "Distinct bigrams")):
        lines.append(
            f"| {title} | "
            + " | ".join([*(t["aligned"][name]["text"] for t in tables), *[""] * (len(tables) - 1)])
            + " |"
        )
    text = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(" ".join(folder.resolve().name for folder in folders).encode()).hexdigest()[:8]
    path = out / f"comparison-{digest}.md"
    path.write_text(text, encoding="utf-8")
    return path


def _numbered(folders: Sequence[Path], labels: Sequence[str]) -> Any:
    return enumerate(zip(folders, labels, strict=True), start=1)


def _evaluation(folder: Path) -> Manifest:
    found = next(folder.glob("*-evaluate"), None)
    manifest = Manifest.read(found) if found else None
    if manifest is None:
        raise ArtifactError(f"run {folder.name} has no finished evaluation; run it without until= first.")
    return manifest
