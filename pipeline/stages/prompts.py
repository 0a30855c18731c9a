"""prompts: gather the requests of all pools, drop what is empty or repeated, split once by hash."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipeline.chain.config_sources import DataConfig
from pipeline.data.loading import load_prompts
from pipeline.records import write_records
from pipeline.stages.base import Inputs, Metrics

VERSION = 1


def run(cfg: DataConfig, inputs: Inputs, out: Path) -> Metrics:
    loaded = load_prompts(cfg)
    write_records(out / "prompts.jsonl", loaded.prompts)
    counts = Counter(f"{prompt.pool}/{prompt.split}" for prompt in loaded.prompts)
    return {
        "num_prompts": len(loaded.prompts),
        "num_by_pool_and_split": dict(sorted(counts.items())),
        "num_empty_dropped": loaded.num_empty,
        "num_duplicates_dropped": loaded.num_duplicate,
    }
