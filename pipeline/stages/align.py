"""align: optimise the SFT model against the soft preferences."""

from __future__ import annotations

from pathlib import Path

from pipeline import distributed
from pipeline.artifacts import WORK
from pipeline.config_train import AlignConfig
from pipeline.errors import StageError
from pipeline.records import Preference, read_records
from pipeline.stages.base import Inputs, Metrics
from pipeline.training.history import write_history

VERSION = 1


def run(cfg: AlignConfig, inputs: Inputs, out: Path) -> Metrics:
    from pipeline.training.dpo import train_dpo, trainable

    preferences = list(read_records(inputs.folders["preferences"] / "preferences.jsonl", Preference))
    rows = trainable(preferences, cfg)
    if not rows:
        raise StageError(
            f"align has no pairs to train on: none of {len(preferences)} labels is usable; lower align.min_confidence "
            f"(now {cfg.min_confidence:g}) or look at the labels in {inputs.folders['preferences']}."
        )
    metrics, history = train_dpo(
        rows,
        str(inputs.folders["sft"] / "model"),
        cfg,
        inputs.model,
        inputs.launch,
        inputs.seed,
        out,
        out / WORK,
        inputs.tracker,
        inputs.watch,
    )
    if distributed.is_main():
        write_history(out, history)
    last = history[-1] if history else {}
    rewards = {name: last.get(name) for name in ("rewards/margins", "rewards/accuracies")}
    return {"num_pairs": len(rows), "num_left_out": len(preferences) - len(rows), **metrics, **rewards}
