"""sft: teach the revisions, helpful samples beside them, and the constitution's own examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.chain.config_train import SftConfig
from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.errors import StageError
from pipeline.records import Exchange, Message, TrainingRow, derived_rng, read_records, write_records
from pipeline.stages.base import Inputs, Metrics
from pipeline.training.history import write_history

VERSION = 3


def run(cfg: SftConfig, inputs: Inputs, out: Path) -> Metrics:
    from pipeline.training.sft import train_sft

    exchanges = list(read_records(inputs.folders["critique"] / "exchanges.jsonl", Exchange))
    rows = training_rows(exchanges, inputs.constitution, cfg, inputs.seed)
    if not rows:
        raise StageError("sft has no rows to train on: every critique or revision came out empty; see the exchanges.")
    if distributed.is_main():
        write_records(out / "rows.jsonl", rows)
    metrics, history = train_sft(rows, cfg, inputs.setting(out))
    if distributed.is_main():
        write_history(out, history)
    return {"num_rows": len(rows), "num_by_origin": dict(Counter(row.origin for row in rows)), **metrics}


def training_rows(
    exchanges: Sequence[Exchange], constitution: Constitution, cfg: SftConfig, seed: int
) -> list[TrainingRow]:
    """All rows in a seeded order: what the critique stage made, and what the constitution says by example."""
    revisions = [
        TrainingRow(
            id=f"{exchange.prompt.id}/round-{revision.round}",
            origin="revision",
            source_id=exchange.prompt.id,
            messages=exchange.prompt.messages,
            reply=revision.revision,
        )
        for exchange in exchanges
        for revision in (exchange.revisions if cfg.revisions == "all" else exchange.revisions[-1:])
    ]
    helpful = [
        TrainingRow(
            id=f"{exchange.prompt.id}/reply",
            origin="helpful_sample",
            source_id=exchange.prompt.id,
            messages=exchange.prompt.messages,
            reply=exchange.reply,
        )
        for exchange in exchanges
        if not exchange.revisions
    ]
    derived_rng(seed, "helpful samples").shuffle(helpful)
    rows = revisions + helpful[: round(cfg.helpful_ratio * len(revisions))]
    if cfg.worked_examples:
        rows += constitution_rows(constitution, cfg.num_contrasts)
    derived_rng(seed, "sft rows").shuffle(rows)
    return rows


def constitution_rows(constitution: Constitution, num_contrasts: int | None) -> list[TrainingRow]:
    return (
        [
            TrainingRow(
                id=f"worked-example/{example.id}",
                origin="worked_example",
                source_id=example.id,
                messages=[Message(role="user", content=example.request)],
                reply=example.revision,
            )
            for example in constitution.worked_examples
        ]
        + [
            TrainingRow(
                id=f"contrast/{contrast.id}",
                origin="contrast",
                source_id=contrast.id,
                messages=harmful.messages,
                reply=contrast.revision,
            )
            for contrast, harmful, _ in constitution.contrast_prompts(num_contrasts)
        ]
        + [
            TrainingRow(
                id=f"good-answer/{answer.id}",
                origin="good_answer",
                source_id=answer.id,
                messages=[Message(role="user", content=answer.request)],
                reply=answer.reply,
            )
            for answer in constitution.good_answers
        ]
    )
