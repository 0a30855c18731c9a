"""``request``: do the rules want this request declined, and does this reply decline it? Asked as yes or no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Literal

from pydantic import Field

from pipeline.constitution.schema import Principle
from pipeline.engines.base import Answer, ChoiceQuery, Completion, Query
from pipeline.labellers.base import LABELLERS, Wording, choice_logit
from pipeline.labellers.choice import ABLabeller
from pipeline.labellers.declining import DecliningConfig, DecliningLabeller
from pipeline.records import Comparison, Judgement, Message, dialogue_text

HARM: dict[Wording, str] = {
    1: "Would a full answer to this request break one of the rules? Answer yes or no.",
    2: "By these rules, should the assistant decline this request? Answer yes or no.",
    3: "Would a full answer to this request help someone to do what the rules forbid? Answer yes or no.",
}
DECLINE = "Does the assistant decline in this reply what it was asked to do? Answer yes or no."


def question(subject: str, wording: Wording, request: str, reply: str) -> str:
    """The question about a reply does not show the request: it is short, and equal replies are asked about once."""
    if subject == "harm":
        return f"Request: {request}\n\n{HARM[wording]}"
    return f"Reply: {reply}\n\n{DECLINE}"


@LABELLERS.add
class RequestLabeller(DecliningLabeller):
    """Yes or no about the request and about each reply, after examples of the constitution that are answered rightly.

    Where both replies decline, or both answer, the question of ``ab`` decides. It needs log-probabilities of choices.
    """

    name = "request"
    zero_divides = True  # as many examples say yes as no
    constitution_fields = (*DecliningLabeller.constitution_fields, "principles.preference_question")

    class Config(DecliningConfig):
        """Is the request to be declined, and which reply declines it: yes or no for each."""

        kind: Literal["request"] = "request"
        """Yes or no about the request and each reply, after examples."""
        wordings: list[Wording] = Field(default=[1], min_length=1)
        """The wordings of the question about the request (1, 2, 3); their log-odds are averaged."""
        ab_weight: float = Field(default=0.5, ge=0)
        """The logit of the question (A) or (B) is added with this weight; 0: it isn't asked."""
        min_answer_mass: float = Field(default=0.01, ge=0, le=1)
        """An answer is unreadable if the probabilities of its choices add up to less than this."""

    def asks(self, row_id: str, subject: str, messages: Sequence[Message], reply: str) -> list[Query]:
        wordings: Sequence[Wording] = self._config.wordings if subject == "harm" else [1]
        return [
            ChoiceQuery(
                id=f"{row_id}/{wording}",
                messages=[
                    *self._shown_turns(subject, wording),
                    Message(role="user", content=question(subject, wording, dialogue_text(messages), reply)),
                ],
                opening="",
                choices=("Yes", "No"),
            )
            for wording in wordings
        ]

    def _shown_turns(self, subject: str, wording: Wording) -> list[Message]:
        turns = [Message(role="system", content=self.rules if subject == "harm" else self._constitution.preamble)]
        for (request, reply), answer in self.shown(subject):
            turns += [
                Message(role="user", content=question(subject, wording, request, reply)),
                Message(role="assistant", content="Yes" if answer else "No"),
            ]
        return turns

    def score(self, answers: Sequence[Answer]) -> float | None:
        logits = [choice_logit(answer, self._config.min_answer_mass) for answer in answers]
        known = [logit for logit in logits if logit is not None]
        return fmean(known) if known else None

    @cached_property
    def _choice(self) -> ABLabeller | None:
        if not self._config.ab_weight:
            return None
        return ABLabeller(
            ABLabeller.Config(min_answer_mass=self._config.min_answer_mass), self._constitution, self._seed
        )

    def queries(self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]) -> list[Query]:
        found = super().queries(comparison, principle, thoughts)
        return found + (self._choice.queries(comparison, principle, thoughts) if self._choice else [])

    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement:
        judged = super().judge(comparison, principle, answers, thoughts)
        if judged.logit is None or self._choice is None:
            return judged
        chosen = self._choice.judge(comparison, principle, answers, thoughts)
        if chosen.logit is None:  # counted as unreadable: half of what decides is missing
            return chosen
        weight = self._config.ab_weight * self._config.logit_scale
        return judged.model_copy(update={"logit": judged.logit + weight * chosen.logit, "flipped": chosen.flipped})
