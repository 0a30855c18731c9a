"""Compare what `cai plan` says of a run with what the run then did, stage by stage, from its manifests:

python scripts/compare_plan.py outputs/runs/latest
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from pipeline.chain.config import Config, to_config
from pipeline.chain.estimates import PROCESS_GIB, memory_of
from pipeline.chain.plan import plan
from pipeline.chain.preflight import preflight
from pipeline.core.cache import Manifest

CONFIG = "config.json"


def comparison(run: Path) -> list[tuple[str, str, float, float]]:
    """(stage, what, planned, measured) of the calls, tokens written, steps and GiB of each finished stage."""
    with tempfile.TemporaryDirectory() as empty:  # so that nothing is cached
        raw = json.loads((run / CONFIG).read_text(encoding="utf-8")) | {"output_dir": empty}
        config: Config = to_config(raw)
        prepared = preflight(config)
        costs = {step.stage: step.cost for step in plan(prepared)}
    memory = memory_of(prepared)
    found = []
    for folder in sorted(run.glob("[0-9]*-*")):
        manifest = Manifest.read(folder.resolve())
        if manifest is None:
            continue
        stage, cost = manifest.stage, costs[manifest.stage]
        found += [
            (stage, "calls", cost.num_calls, manifest.num_calls),
            (stage, "tokens written", cost.num_tokens_written, manifest.num_tokens_written),
            (stage, "steps", cost.num_steps, manifest.metrics.get("num_steps") or 0),
        ]
        if stage in memory and manifest.peak_memory_gib is not None:
            found.append((stage, "GiB", memory[stage].total + PROCESS_GIB, manifest.peak_memory_gib))
    return [row for row in found if row[2] or row[3]]


def table(rows: list[tuple[str, str, float, float]]) -> list[str]:
    lines = ["| stage | what | planned | measured | planned / measured |", "| --- | --- | --- | --- | --- |"]
    for stage, what, planned, measured in rows:
        form = ".2f" if what == "GiB" else ",.0f"
        ratio = f"{planned / measured:.2f}" if measured else "–"
        lines.append(f"| {stage} | {what} | {planned:{form}} | {measured:{form}} | {ratio} |")
    return lines


def totals(rows: list[tuple[str, str, float, float]]) -> list[tuple[str, str, float, float]]:
    """Of the whole run: all tokens, and the stage that needs most memory."""
    written = [(planned, measured) for _, what, planned, measured in rows if what == "tokens written"]
    sizes = [(planned, measured) for _, what, planned, measured in rows if what == "GiB"]
    whole = [("run", "tokens written", float(sum(p for p, _ in written)), float(sum(m for _, m in written)))]
    if sizes:
        whole.append(("run", "GiB", max(p for p, _ in sizes), max(m for _, m in sizes)))
    return whole


if __name__ == "__main__":
    rows = comparison(Path(sys.argv[1]))
    print("\n".join(table([*rows, *totals(rows)])))
