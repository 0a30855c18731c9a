"""The interface of labellers, and the soft label (AI feedback: Bai et al. 2022, section 4.1).

A labeller turns a comparison and a principle into queries, and their answers into one logit of "reply A is better".
Logits are averaged over principles. The label is the sigmoid of the mean: a probability, not rounded.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.core.settings import Registry, Settings
from pipeline.engines.base import Answer, Completion, EngineConfig, Query, Request
from pipeline.records import Comparison, Judgement, Prompt

TEMPLATE = "preference-4"  # in every cache key; raise it if a question changes (a golden test checks)


OPPOSITE_WORDS = {
    "title": "the opposite of “{}”",
    "preference_question": "The rule here is the opposite of this question: “{}” The better reply is the one that the "
    "question would not choose.",
}
"""Field of a principle → its words when the principle says the opposite."""

Wording = Literal[1, 2, 3]
"""Paraphrases of a labeller's question; 1 is the first in every labeller."""


class LabellerConfig(Settings):
    """Settings that every labeller reads."""

    kind: str
    """The labeller."""
    num_principles: int = Field(default=1, ge=1)
    """Principles drawn for each pair; their logits are averaged."""
    logit_scale: float = Field(default=1.0, gt=0)
    """Every logit is multiplied by this."""

    @property
    def clamp(self) -> tuple[float, float]:
        """The lowest and the highest probability that a label may have."""
        return 0.0, 1.0


class Labeller(ABC):
    """``reasoning`` may request text first; ``queries`` ask for log-probabilities; ``judge`` reads the answers."""

    name: ClassVar[str]
    Config: ClassVar[type[LabellerConfig]]
    version: ClassVar[int] = 1
    """Part of the cache key above 1; raise it if its labels change. A question that changes raises ``TEMPLATE``."""
    needs_reply_scores: ClassVar[bool] = False
    """It scores given replies (``ReplyQuery``), which not every engine can do."""
    opposed: bool = False
    """Set to see what the words decide, for a labeller that reads more of the constitution than the drawn principle: it
    then judges by the opposite of all that it reads."""
    asks_both_orders: ClassVar[bool] = False
    """It shows both replies in each order, and its judgements say whether the order mattered (``flipped``)."""
    draws_by_pool: ClassVar[bool] = True
    """Its principles are drawn for the pool under which a prompt was filed; False: from all of them."""
    constitution_fields: ClassVar[tuple[str, ...]] = ()
    """The fields of the constitution that it reads, without those for sampling principles."""

    @classmethod
    def notes(cls, config: Any, constitution: Constitution) -> list[str]:
        """Warnings about what this constitution does not allow."""
        return []

    def __init__(self, config: Any, constitution: Constitution, seed: int) -> None:
        self._config, self._constitution, self._seed = config, constitution, seed

    def reasoning(self, comparison: Comparison, principle: Principle) -> list[Request]:
        return []

    @abstractmethod
    def queries(
        self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]
    ) -> list[Query]: ...

    @abstractmethod
    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement: ...


class ReplyLabeller(Labeller):
    """Judges each reply separately; a pair's logit is the difference. It can also reward a single reply."""

    @property
    def knows_only_declining(self) -> bool:
        """Whether it measures if a reply declines, whatever the words of the principle are."""
        return False

    @abstractmethod
    def ask(self, row_id: str, side: str, prompt: Prompt, reply: str, principle: Principle) -> Sequence[Query]: ...

    @abstractmethod
    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        """The reply's logit from the answers, or None if they could not be read."""

    def _sides(self, comparison: Comparison, principle: Principle) -> list[Sequence[Query]]:
        return [
            self.ask(comparison.id, side, comparison.prompt, reply, principle)
            for side, reply in (("a", comparison.reply_a), ("b", comparison.reply_b))
        ]

    def queries(self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]) -> list[Query]:
        return [query for queries in self._sides(comparison, principle) for query in queries]

    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement:
        a, b = (self.reply_logit(queries, answers) for queries in self._sides(comparison, principle))
        logit = None if a is None or b is None else (a - b) * self._config.logit_scale
        return Judgement(principle_id=principle.id, logit=logit)


LABELLERS: Registry[Labeller] = Registry("labeller", "kind")
SAMPLING_FIELDS = ("principles.id", "principles.tags", "principles.weight")  # read to sample principles


def reads_choices(config: LabellerConfig | None) -> bool:
    """Whether a labeller asks choice queries; others score given replies."""
    return config is not None and not LABELLERS[config.kind].needs_reply_scores


def can_ask(config: LabellerConfig, engine: EngineConfig) -> bool:
    """Whether the engine can answer what the labeller asks."""
    return engine.scores_replies or not LABELLERS[config.kind].needs_reply_scores


def constitution_fields(config: LabellerConfig) -> tuple[str, ...]:
    """Return the fields of the constitution that labelling with these settings reads."""
    return (*SAMPLING_FIELDS, *LABELLERS[config.kind].constitution_fields)


# --- Pure functions ------------------------------------------------------------------------------------------------


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def combine_orders(logit_first: float, logit_second: float) -> float:
    """Remove the bias of the order: half the difference of the two logits of "the reply shown first is better".

    Args:
        logit_first: log p(A)/p(B) with reply A first.
        logit_second: the same with the replies swapped.

    Returns:
        The logit of "reply A is better"; exactly 0 for a judge whose answer depends only on the order.
    """
    return (logit_first - logit_second) / 2


def soft_label(logits: Sequence[float | None], clamp: tuple[float, float] = (0.0, 1.0)) -> float | None:
    """σ of the mean logit over principles, clamped; None if no principle gave a readable answer."""
    known = [logit for logit in logits if logit is not None]
    if not known:
        return None
    low, high = clamp
    return min(max(sigmoid(math.fsum(known) / len(known)), low), high)


def binary_entropy_bits(probability: float) -> float:
    """H(p) in bits: 1 for p = 0.5, and 0 for p = 0 or 1."""
    return -sum(p * math.log2(p) for p in (probability, 1 - probability) if p > 0)


def choice_logit(answer: Answer, min_mass: float) -> float | None:
    """log p(first choice)/p(second choice); None if the sum of both probabilities is below ``min_mass``."""
    if not answer.is_readable or sum(map(math.exp, answer.logprobs)) < min_mass:
        return None
    first, second = answer.logprobs
    return first - second


def both_orders(comparison: Comparison) -> tuple[tuple[str, Comparison], tuple[str, Comparison]]:
    return ("own", comparison), ("swapped", comparison.swap())
