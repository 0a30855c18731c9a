"""sft: fine-tune on revisions, helpful samples and the examples of the constitution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.errors import StageError
from pipeline.core.settings import part
from pipeline.core.stage import WEIGHTS, Context, Cost, Memory, Metrics, Prepared, Stage, Use
from pipeline.data.counterfactuals import CounterfactualSet, counterfactual_sets, retold
from pipeline.evals.counterfactuals import outcome
from pipeline.methods.base import num_steps
from pipeline.records import Exchange, Message, TrainingRow, derived_rng, read_records, write_records
from pipeline.training.config import TrainConfig, training_use
from pipeline.training.history import write_history

if TYPE_CHECKING:
    from pipeline.chain.config import Config

TOKENS_PER_TURN = 50  # for estimates of tokens read


class SftConfig(TrainConfig):
    """Supervised fine-tuning on revisions and helpful samples (Bai et al. 2022, section 3)."""

    revisions: Literal["all", "last"] = "all"
    """Train on the revisions of all rounds, or only on the last one."""
    helpful_ratio: float = Field(default=1.0, ge=0)
    """The most helpful samples (the model's own replies to harmless requests) per revision."""
    worked_examples: bool = True
    """Also train on the worked examples, good answers and contrasts of the constitution."""
    num_contrasts: int | None = Field(default=None, ge=0)
    """How many contrasts of the constitution are used for this; null: all."""
    num_counterfactuals: int = Field(default=0, ge=0)
    """How many counterfactual templates (docs/fairness.md) to train on: the model's reply to the request that names no
    group (revised, if it is harmful) is the reply to every group."""

    def key(self) -> dict[str, Any]:
        """Without counterfactuals, their number is not in it: results from before this setting stay valid."""
        usual = {"num_counterfactuals": 0}
        return {name: value for name, value in super().key().items() if (name, value) not in usual.items()}


class Sft(Stage):
    """Supervised fine-tuning of the base model."""

    name, needs, outputs = "sft", ("critique",), ("rows.jsonl", *WEIGHTS)
    version = 5

    def reads(self, config: Config, constitution: Constitution) -> dict[str, Any]:
        parts: dict[str, tuple[str, ...]] = {
            "worked_examples": ("id", "request", "revision"),
            "good_answers": ("id", "request", "reply"),
        }
        if config.sft.num_contrasts != 0:
            parts["contrasts"] = ("id", "request", "revision", "twin")
        read = [f"{name}.{field}" for name, fields in parts.items() for field in fields]
        examples = read if config.sft.worked_examples else []
        return {
            "seed": config.seed,
            "model": part(config.model, "path", "revision", "precision", "tuning", "lora"),
            "constitution": part(constitution, *examples),
            **({"counterfactuals": _sets(config)} if config.sft.num_counterfactuals else {}),
        }

    def check(self, prepared: Prepared) -> list[str]:
        from pipeline.training.models import check_training

        check_training(prepared.config.model)
        return []

    def uses(self, prepared: Prepared) -> list[Use]:
        config, critique = prepared.config.sft, prepared.config.critique
        prompts = [prompt.messages for prompt in critique.training_prompts(prepared.prompts)]
        prompts += [prompt.messages for each in _sets(prepared.config) for prompt in each.prompts]
        longest = max(critique.max_reply_tokens, critique.max_revision_tokens)
        return [training_use("sft", prompts, longest, config)]

    def cost(self, prepared: Prepared) -> Cost:
        config, critique, constitution = prepared.config.sft, prepared.config.critique, prepared.constitution
        counts = {pool: len(prompts) for pool, prompts in critique.by_pool(prepared.prompts).items()}
        num_revised = sum(counts[pool] for pool in constitution.revise)
        num_revisions = num_revised * (critique.num_rounds if config.revisions == "all" else 1)
        num_helpful = min(sum(counts.values()) - num_revised, round(config.helpful_ratio * num_revisions))
        num_written = len(constitution_rows(constitution, config.num_contrasts)) if config.worked_examples else 0
        num_rounds = critique.num_rounds if config.revisions == "all" else 1
        num_of_groups = sum(
            len(each.prompts) * (num_rounds if each.neutral.pool in constitution.revise else 1)
            for each in _sets(prepared.config)
        )
        num_rows = num_revisions + num_helpful + num_written + num_of_groups
        tokens = TOKENS_PER_TURN + critique.max_revision_tokens
        return Cost(num_tokens_read=round(num_rows * tokens * config.num_epochs), num_steps=num_steps(num_rows, config))

    def memory(self, prepared: Prepared) -> Memory:
        from pipeline.training.footprint import of_training

        return of_training(self.name, prepared, prepared.config.sft, prepared.config.critique.max_revision_tokens)

    def run(self, config: SftConfig, context: Context) -> Metrics:
        from pipeline.training.sft import train_sft

        exchanges = list(read_records(context.folder("critique") / "exchanges.jsonl", Exchange))
        sets = context.counterfactuals if config.num_counterfactuals else []
        rows = training_rows(exchanges, context.constitution, config, context.seed, sets)
        if not rows:
            raise StageError("sft has no rows to train on, because every critique or revision is empty.")
        if distributed.is_main():
            write_records(context.out / "rows.jsonl", rows)
        metrics, history = train_sft(rows, config, context)
        if distributed.is_main():
            write_history(context.out, history)
        return {"num_rows": len(rows), "num_by_origin": dict(Counter(row.origin for row in rows)), **metrics}


def _sets(config: Config) -> list[CounterfactualSet]:
    return counterfactual_sets(config.data, config.sft.num_counterfactuals)


def training_rows(
    exchanges: Sequence[Exchange],
    constitution: Constitution,
    cfg: SftConfig,
    seed: int,
    sets: Sequence[CounterfactualSet] = (),
) -> list[TrainingRow]:
    """All rows in a seeded order: from the critique stage, from the examples of the constitution, and for the groups of
    counterfactual ``sets``."""
    neutral = {each.neutral.id for each in sets}
    by_prompt = {exchange.prompt.id: exchange for exchange in exchanges}
    exchanges = [exchange for exchange in exchanges if exchange.prompt.id not in neutral]
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
            begun=exchange.begun,
        )
        for exchange in exchanges
        if not exchange.revisions
    ]
    derived_rng(seed, "helpful samples").shuffle(helpful)
    rows = revisions + helpful[: round(cfg.helpful_ratio * len(revisions))]
    if cfg.worked_examples:
        rows += constitution_rows(constitution, cfg.num_contrasts)
    for each in sets:
        if (exchange := by_prompt.get(each.neutral.id)) is not None:
            rows += group_rows(each, exchange, cfg.revisions)
    derived_rng(seed, "sft rows").shuffle(rows)
    return rows


def group_rows(each: CounterfactualSet, exchange: Exchange, revisions: Literal["all", "last"]) -> list[TrainingRow]:
    """The same replies for every group of a set: those to the prompt that names none. Only the phrase for the person is
    adapted. There are no rows where the model declines a harmless request, or answers a harmful one unrevised."""
    revised = exchange.revisions if revisions == "all" else exchange.revisions[-1:]
    replies = [(f"round-{revision.round}", revision.revision, False) for revision in revised]
    right = "refused" if each.is_harmful else "complied"
    if not replies and outcome(exchange.reply, exchange.prompt.request) == right:
        replies = [("reply", exchange.reply, exchange.begun)]
    return [
        TrainingRow(
            id=f"{prompt.id}/{name}",
            origin="counterfactual",
            source_id=each.neutral.id,
            messages=prompt.messages,
            reply=retold(reply, each.neutral_person, person),
            begun=begun,
        )
        for name, reply, begun in replies
        for prompt, person in zip(each.prompts, each.persons, strict=True)
    ]


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
