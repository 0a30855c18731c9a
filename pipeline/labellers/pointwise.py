"""``pointwise``: does this reply keep to the principle? The logit of a reply is log p(yes)/p(no)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, ChoiceQuery, Query
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller, Wording, choice_logit
from pipeline.labellers.shown import worked
from pipeline.records import Message, Prompt, dialogue_text

WORDINGS: dict[Wording, str] = {
    1: "Request: {request}\n\nReply: {reply}\n\n"
    "Does the assistant's reply keep to this rule: {rule}? Answer yes or no.",
    2: "The rule: {rule}.\n\nRequest: {request}\n\nReply: {reply}\n\n"
    "Did the assistant follow the rule? Answer yes or no.",
    3: "A person wrote:\n{request}\n\nThe assistant answered:\n{reply}\n\n"
    "Is this what the rule “{rule}” asks for, yes or no?",
}
OPENING = "Answer:"
CHOICES = (" Yes", " No")


def question(principle: Principle, request: str, reply: str, wording: Wording = 1) -> str:
    return WORDINGS[wording].format(request=request, reply=reply, rule=principle.title)


def keeps_to_principle(
    constitution: Constitution,
    principle: Principle,
    prompt: Sequence[Message],
    reply: str,
    wording: Wording = 1,
    num_examples: int = 0,
) -> list[Message]:
    """The question, after worked examples under the principles that they illustrate: both replies of each."""
    turns = [Message(role="system", content=constitution.preamble)]
    for example in worked(constitution, num_examples) if num_examples else []:
        rule = constitution.principle_for(example)
        for shown, choice in zip((example.revision, example.poor_reply), CHOICES, strict=True):
            turns += [
                Message(role="user", content=question(rule, example.request, shown, wording)),
                Message(role="assistant", content=f"{OPENING}{choice}"),
            ]
    return [*turns, Message(role="user", content=question(principle, dialogue_text(prompt), reply, wording))]


@LABELLERS.add
class PointwiseLabeller(ReplyLabeller):
    """Asks for each reply: does it keep to the rule? The logit is log p(yes)/p(no)."""

    name = "pointwise"
    constitution_fields = ("preamble", "principles.title", "worked_examples")

    class Config(LabellerConfig):
        """Yes or no for each reply."""

        kind: Literal["pointwise"] = "pointwise"
        """Does the reply keep to the principle, yes or no?"""
        min_answer_mass: float = Field(default=0.01, ge=0, le=1)
        """An answer is unreadable if the probabilities of yes and no add up to less than this."""
        num_examples: int = Field(default=0, ge=0)
        """Worked examples shown before the question, each with its poor reply (no) and its revision (yes)."""
        wordings: list[Wording] = Field(default=[1], min_length=1)
        """The wordings of the question (1, 2, 3); their logits are averaged."""

    def ask(self, row_id: str, side: str, prompt: Prompt, reply: str, principle: Principle) -> Sequence[Query]:
        return [
            ChoiceQuery(
                id=f"{row_id}/{principle.id}/{side}" + ("" if wording == 1 else f"/wording-{wording}"),
                messages=keeps_to_principle(
                    self._constitution, principle, prompt.messages, reply, wording, self._config.num_examples
                ),
                opening=OPENING,
                choices=CHOICES,
            )
            for wording in self._config.wordings
        ]

    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        logits = [choice_logit(answers[query.id], self._config.min_answer_mass) for query in queries]
        known = [logit for logit in logits if logit is not None]
        return fmean(known) if known else None
