"""Where the training rows of a run come from: their principles, critiques, labels and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from pipeline.constitution.schema import Constitution
from pipeline.records import Exchange, Preference, TrainingRow, dialogue_text


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    request: str


class SftSource(_Source):
    """A row of supervised fine-tuning. None where a row of its origin has no such thing."""

    origin: str
    reply: str
    principle: str | None = None
    """The id of the principle of its critique."""
    critique: str | None = None
    critique_seed: int | None = None
    seed: int | None = None
    """The seed with which the reply was drawn; None: people wrote it."""


class PairSource(_Source):
    """A comparison that the model was aligned on."""

    reply_a: str
    reply_b: str
    probability_a: float
    """The label: the probability that reply A is the better one."""
    labeller: str
    principles: list[str]
    """The ids of the principles under which it was judged; none if no model judged it."""
    seed_a: int
    seed_b: int

    @property
    def better(self) -> str:
        return self.reply_a if self.probability_a >= 0.5 else self.reply_b

    @property
    def other(self) -> str:
        return self.reply_b if self.probability_a >= 0.5 else self.reply_a


def sft_sources(
    rows: Iterable[TrainingRow], exchanges: Sequence[Exchange], constitution: Constitution
) -> list[SftSource]:
    """The source of each row, in their order."""
    by_prompt = {exchange.prompt.id: exchange for exchange in exchanges}
    return [_sft_source(row, by_prompt, constitution) for row in rows]


def _sft_source(row: TrainingRow, exchanges: dict[str, Exchange], constitution: Constitution) -> SftSource:
    source = SftSource(id=row.id, origin=row.origin, request=dialogue_text(row.messages), reply=row.reply)
    exchange = exchanges.get(row.source_id)
    if exchange is not None and (row.origin == "helpful_sample" or row.id.endswith("/reply")):
        return source.model_copy(update={"seed": exchange.reply_seed})
    if exchange is not None and row.origin in ("revision", "counterfactual"):
        revision = next(found for found in exchange.revisions if row.id.endswith(f"/round-{found.round}"))
        return source.model_copy(
            update={
                "principle": revision.principle_id,
                "critique": revision.critique,
                "critique_seed": revision.critique_seed,
                "seed": revision.revision_seed,
            }
        )
    example = next((example for example in constitution.worked_examples if example.id == row.source_id), None)
    if row.origin == "worked_example" and example is not None:
        principle = constitution.principle_for(example).id
        return source.model_copy(update={"principle": principle, "critique": example.critique})
    return source


def pair_source(preference: Preference) -> PairSource:
    """The source of a comparison that has a label."""
    pair = preference.comparison
    assert preference.probability_a is not None
    return PairSource(
        id=pair.id,
        request=dialogue_text(pair.prompt.messages),
        reply_a=pair.reply_a,
        reply_b=pair.reply_b,
        probability_a=preference.probability_a,
        labeller=preference.labeller,
        principles=list(dict.fromkeys(judgement.principle_id for judgement in preference.judgements)),
        seed_a=pair.seed_a,
        seed_b=pair.seed_b,
    )
