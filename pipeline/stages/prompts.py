"""prompts: read the prompts of all pools, drop empty and repeated ones, and split them by hash."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pipeline.constitution.schema import Constitution
from pipeline.core.settings import part
from pipeline.core.stage import Context, Metrics, Stage
from pipeline.data.loading import load_prompts
from pipeline.data.sources import DataConfig
from pipeline.evals.cases import build_cases
from pipeline.evals.suites.base import SUITES
from pipeline.records import write_records

if TYPE_CHECKING:
    from pipeline.chain.config import Config


class Prompts(Stage):
    """The prompts of all pools, each with its split."""

    name, section, needs, outputs = "prompts", "data", ("write",), ("prompts.jsonl",)
    version = 3
    parallel = trains = False

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        """Where models wrote some of the prompts: the suites, because no written prompt may be near to their cases."""
        if not config.write.is_on and config.data.written is None:
            return {}
        return {"suites": part(config.evaluate, "suites", *filter(config.evaluate.counting, SUITES))}

    def run(self, config: DataConfig, context: Context) -> Metrics:
        written = {name: folder / "written.jsonl" for name, folder in context.folders.items()}
        evaluated: dict[str, str] = {}
        if written or config.written is not None:
            cases = build_cases(context.suites, [], [])
            evaluated = {case.id: case.prompt.request for case in cases}
        loaded = load_prompts(config, written, evaluated)
        write_records(context.out / "prompts.jsonl", loaded.prompts)
        counts = Counter(f"{prompt.pool}/{prompt.split}" for prompt in loaded.prompts)
        return {
            "num_prompts": len(loaded.prompts),
            "num_by_pool_and_split": dict(sorted(counts.items())),
            "num_empty_dropped": loaded.unused_by_pool("num_empty"),
            "num_duplicates_dropped": loaded.unused_by_pool("num_duplicate"),
            "num_malformed_dropped": loaded.unused_by_pool("num_malformed"),
            "num_other_class_dropped": loaded.unused_by_pool("num_other_class"),
            "num_mended": loaded.unused_by_pool("num_mended"),
            "num_written": len(loaded.written),
            "num_written_left_out": dict(sorted(loaded.num_written_left_out.items())),
        }
