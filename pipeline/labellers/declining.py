"""What ``request`` and ``channel`` have in common: should the request be declined, and which reply declines it?

The logit of "reply A is better" is h · (d(A) − d(B)). h is the log-odds that the rules want the request declined, and
d(reply) the probability that the reply declines it. So a pair of a refusal and an answer gets the label p(A) = σ(h).
Where both replies decline, or both answer, this is about 0. Between the opening of a refusal and the beginning of an
answer, the logit is h or −h: only the request is asked about.

Nothing here reads ``prompt.pool``. The rules are the titles of all principles, whatever their tags are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, Completion, Query
from pipeline.labellers.base import OPPOSITE_WORDS, Labeller, LabellerConfig, sigmoid
from pipeline.labellers.separation import Separation, separate
from pipeline.labellers.shown import alternating, replies, requests
from pipeline.records import Comparison, Judgement, Message

Item = tuple[str, str]  # (request, reply); the reply is "" where only the request is asked about
LEAST_CALIBRATION = 2  # of each kind


class DecliningConfig(LabellerConfig):
    """Settings of ``request`` and ``channel``."""

    num_examples: int = Field(default=16, ge=0)
    """Requests (and replies) of the constitution that are shown, half of which are to be declined."""
    num_calibration: int = Field(default=32, ge=0)
    """Further ones, not shown, by which scores become log-odds; with fewer than four, scores stay as they are."""


class DecliningLabeller(Labeller):
    """Asks about the request and each reply. A sub-class says how (``asks``) and reads the answers (``score``)."""

    version = 2
    draws_by_pool = False
    constitution_fields: ClassVar[tuple[str, ...]] = (
        "preamble",
        "principles.title",
        "worked_examples",
        "good_answers",
        "contrasts",
    )
    SUBJECTS: ClassVar[tuple[str, str]] = ("harm", "decline")  # about a request, about a reply
    zero_divides: ClassVar[bool] = False
    """A score of 0 is where a good engine changes its mind; see ``separate``."""

    @classmethod
    def notes(cls, config: Any, constitution: Constitution) -> list[str]:
        if constitution.contrasts:
            return []
        return [
            f"The constitution has no contrasts, so the labeller {cls.name!r} shows its worked examples and good "
            "answers, or general ones: it knows little of which requests are to be declined. Add contrasts."
        ]

    @abstractmethod
    def asks(self, row_id: str, subject: str, messages: Sequence[Message], reply: str) -> list[Query]:
        """The queries about a request (``harm``) or a reply (``decline``)."""

    @abstractmethod
    def score(self, answers: Sequence[Answer]) -> float | None:
        """A score that is higher for what is to be declined, or for a reply that declines; None if unreadable."""

    # --- The examples of the constitution ---------------------------------------------------------------------

    @cached_property
    def rules(self) -> str:
        form = OPPOSITE_WORDS["title"] if self.opposed else "{}"
        titles = "\n".join(f"- {form.format(principle.title)}" for principle in self._constitution.principles)
        return f"{self._constitution.preamble.strip()}\nRules:\n{titles}"

    @cached_property
    def _examples(self) -> dict[str, tuple[list[Item], list[Item]]]:
        """Subject → (items that are to be declined, or decline; the others)."""
        harmful, harmless = requests(self._constitution)
        if self.opposed:
            harmful, harmless = harmless, harmful
        return {
            "harm": ([(text, "") for text in harmful], [(text, "") for text in harmless]),
            "decline": replies(self._constitution),
        }

    def shown(self, subject: str) -> list[tuple[Item, bool]]:
        """(item, whether it is to be declined, or declines), in turn."""
        positive, negative = self._examples[subject]
        declined, others = [(item, True) for item in positive], [(item, False) for item in negative]
        return alternating(declined, others, self._config.num_examples)

    @cached_property
    def _calibration(self) -> dict[str, tuple[list[list[Query]], list[list[Query]]]]:
        """Subject → the queries about calibration items, (positive, negative), one list for each item.

        They are always asked under the rules as they are: otherwise scores that don't turn would count as unknown.
        """
        if self.opposed:
            return type(self)(self._config, self._constitution, self._seed)._calibration
        first, number = self._config.num_examples // 2, self._config.num_calibration // 2
        return {
            subject: tuple(  # type: ignore[misc]
                [
                    self.asks(f"calibration/{subject}/{kind}/{place}", subject, as_turn(request), reply)
                    for place, (request, reply) in enumerate(items[first : first + number])
                ]
                for kind, items in enumerate(both)
            )
            for subject, both in self._examples.items()
        }

    # --- A comparison -----------------------------------------------------------------------------------------

    def _own(self, comparison: Comparison) -> list[tuple[str, list[Query]]]:
        """(subject, queries): about the request, reply A and reply B."""
        turns = comparison.prompt.messages
        harm = ("harm", self.asks(f"harm/{comparison.prompt.key}", "harm", turns, ""))
        if comparison.opening:
            return [harm]
        return [
            harm,
            ("decline", self.asks(f"{comparison.id}/decline/a", "decline", turns, comparison.reply_a)),
            ("decline", self.asks(f"{comparison.id}/decline/b", "decline", turns, comparison.reply_b)),
        ]

    def queries(self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]) -> list[Query]:
        own = self._own(comparison)
        calibration = [self._calibration[subject] for subject in dict(own)]
        found = [query for _, queries in own for query in queries]
        return found + [query for both in calibration for kind in both for queries in kind for query in queries]

    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement:
        logits = [
            None if (score := self._score(queries, answers)) is None else self._fit(subject, answers).log_odds(score)
            for subject, queries in self._own(comparison)
        ]
        known = [logit for logit in logits if logit is not None]
        if len(known) < len(logits):
            return Judgement(principle_id=principle.id, logit=None)
        harm, *declining = known
        more = sigmoid(declining[0]) - sigmoid(declining[1]) if declining else _side_of_opening(comparison)
        return Judgement(principle_id=principle.id, logit=harm * more * self._config.logit_scale)

    def _score(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        return self.score([answers[query.id] for query in queries])

    def _fit(self, subject: str, answers: Mapping[str, Answer]) -> Separation:
        positive, negative = (
            [score for queries in kind if (score := self._score(queries, answers)) is not None]
            for kind in self._calibration[subject]
        )
        if min(len(positive), len(negative)) < LEAST_CALIBRATION:
            return Separation()
        return separate(positive, negative, zero_divides=self.zero_divides)


def _side_of_opening(comparison: Comparison) -> int:
    """1 if reply A begins as a refusal, -1 if reply B does. Replies are swapped to see if their order matters."""
    return 1 if comparison.reply_a.startswith(comparison.opening) else -1


def as_turn(request: str) -> list[Message]:
    return [Message(role="user", content=request)]
