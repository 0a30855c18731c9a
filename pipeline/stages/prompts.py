"""prompts: read the prompts of all pools, drop empty and repeated ones, and split them by hash."""

from __future__ import annotations

from collections import Counter

from pipeline.core.stage import Context, Metrics, Stage
from pipeline.data.loading import load_prompts
from pipeline.data.sources import DataConfig
from pipeline.records import write_records


class Prompts(Stage):
    """The prompts of all pools, each with its split."""

    name, section, outputs = "prompts", "data", ("prompts.jsonl",)
    version = 2
    parallel = trains = False

    def run(self, config: DataConfig, context: Context) -> Metrics:
        loaded = load_prompts(config)
        write_records(context.out / "prompts.jsonl", loaded.prompts)
        counts = Counter(f"{prompt.pool}/{prompt.split}" for prompt in loaded.prompts)
        return {
            "num_prompts": len(loaded.prompts),
            "num_by_pool_and_split": dict(sorted(counts.items())),
            "num_empty_dropped": loaded.num_empty,
            "num_duplicates_dropped": loaded.num_duplicate,
            "num_mended": loaded.num_mended,
        }
