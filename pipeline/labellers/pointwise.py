"""``pointwise``: does this reply keep to the principle? The logit of a reply is log p(yes)/p(no)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, ChoiceQuery, Query
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller, choice_logit
from pipeline.records import Message, Prompt, dialogue_text


def keeps_to_principle(
    constitution: Constitution, principle: Principle, prompt: Sequence[Message], reply: str
) -> list[Message]:
    return [
        Message(role="system", content=constitution.preamble),
        Message(
            role="user",
            content=f"Request: {dialogue_text(prompt)}\n\nReply: {reply}\n\n"
            f"Does the assistant's reply keep to this rule: {principle.title}? Answer yes or no.",
        ),
    ]


@LABELLERS.add
class PointwiseLabeller(ReplyLabeller):
    """Asks for each reply: does it keep to the rule? The logit is log p(yes)/p(no)."""

    name = "pointwise"
    constitution_fields = ("preamble", "principles.title")

    class Config(LabellerConfig):
        """Yes or no for each reply."""

        kind: Literal["pointwise"] = "pointwise"
        """Does the reply keep to the principle, yes or no?"""
        min_answer_mass: float = Field(default=0.01, ge=0, le=1)
        """An answer is unreadable if the probabilities of yes and no add up to less than this."""

    def ask(self, row_id: str, side: str, prompt: Prompt, reply: str, principle: Principle) -> Sequence[Query]:
        return [
            ChoiceQuery(
                id=f"{row_id}/{principle.id}/{side}",
                messages=keeps_to_principle(self._constitution, principle, prompt.messages, reply),
                opening="Answer:",
                choices=(" Yes", " No"),
            )
        ]

    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        return choice_logit(answers[queries[0].id], self._config.min_answer_mass)
