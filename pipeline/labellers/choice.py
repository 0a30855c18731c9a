"""``ab`` and ``cot``: which reply is better, (A) or (B)? (Bai et al. 2022, section 4.1)"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, ChoiceQuery, Completion, Query, Request
from pipeline.labellers.base import (
    LABELLERS,
    Labeller,
    LabellerConfig,
    Wording,
    both_orders,
    choice_logit,
    combine_orders,
)
from pipeline.labellers.shown import worked
from pipeline.records import Comparison, Judgement, Message, derive_seed, dialogue_text

WORDINGS: dict[Wording, str] = {
    1: "Request: {request}\n\n{rule}\n\n(A) {a}\n\n(B) {b}\n\nIs reply (A) or reply (B) the better one?",
    2: "{rule}\n\nThe request was: {request}\n\n(A) {a}\n\n(B) {b}\n\nGive the letter of the reply that you choose.",
    3: "A person wrote:\n{request}\n\nTwo assistants answered:\n(A) {a}\n(B) {b}\n\n{rule} Say (A) or (B).",
}
LETTERS = "ABBA"  # of the better reply in the examples: as many A as B, for harmful requests and for others


def question(principle: Principle, request: str, reply_a: str, reply_b: str, wording: Wording = 1) -> str:
    return WORDINGS[wording].format(request=request, rule=principle.preference_question, a=reply_a, b=reply_b)


def which_is_better(
    constitution: Constitution,
    principle: Principle,
    comparison: Comparison,
    wording: Wording = 1,
    num_examples: int = 0,
) -> list[Message]:
    """The question, after worked examples under the principles that they illustrate, with their answers."""
    turns = [Message(role="system", content=constitution.preamble)]
    for number, example in enumerate(worked(constitution, num_examples) if num_examples else []):
        letter = LETTERS[number % len(LETTERS)]
        replies = (example.revision, example.poor_reply)
        a, b = replies if letter == "A" else replies[::-1]
        asked = question(constitution.principle_for(example), example.request, a, b, wording)
        turns += [
            Message(role="user", content=asked),
            Message(role="assistant", content=f"{ABLabeller.OPENING}{letter})."),
        ]
    request = dialogue_text(comparison.prompt.messages)
    asked = question(principle, request, comparison.reply_a, comparison.reply_b, wording)
    return [*turns, Message(role="user", content=asked)]


@LABELLERS.add
class ABLabeller(Labeller):
    """Which is better, (A) or (B)? Asked in both orders, perhaps after examples and in several wordings."""

    name = "ab"
    asks_both_orders = True
    constitution_fields = ("preamble", "principles.preference_question", "worked_examples")
    OPENING = "The better reply is ("

    class Config(LabellerConfig):
        """(A) or (B), asked in both orders and averaged in logit space."""

        kind: Literal["ab"] = "ab"
        """Which reply is better, (A) or (B)?"""
        min_answer_mass: float = Field(default=0.01, ge=0, le=1)
        """An answer is unreadable if the probabilities of (A) and (B) add up to less than this."""
        num_examples: int = Field(default=0, ge=0)
        """Worked examples shown before the question; half of them decline, and half have (A) as the better reply."""
        wordings: list[Wording] = Field(default=[1], min_length=1)
        """The wordings of the question (1, 2, 3); their logits are averaged."""

    def _asked(self, comparison: Comparison, principle: Principle) -> list[tuple[str, list[Message]]]:
        """(id, question) for each wording, in both orders."""
        asked = []
        for wording in self._config.wordings:
            worded = "" if wording == 1 else f"/wording-{wording}"
            for order, shown in both_orders(comparison):
                messages = which_is_better(self._constitution, principle, shown, wording, self._config.num_examples)
                asked.append((f"{comparison.id}/{principle.id}/{order}{worded}", messages))
        return asked

    def queries(self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]) -> list[Query]:
        return [
            ChoiceQuery(id=row_id, messages=messages, opening=self.OPENING, choices=("A", "B"))
            for row_id, messages in self._asked(comparison, principle)
        ]

    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement:
        logits = [
            choice_logit(answers[row_id], self._config.min_answer_mass)
            for row_id, _ in self._asked(comparison, principle)
        ]
        read = [both for both in zip(logits[::2], logits[1::2], strict=True) if None not in both]
        if not read:
            return Judgement(principle_id=principle.id, logit=None)
        first, second = (fmean(logit for logit in order if logit is not None) for order in zip(*read, strict=True))
        # The answer depends on the order if the same letter wins both times.
        return Judgement(
            principle_id=principle.id,
            logit=combine_orders(first, second) * self._config.logit_scale,
            flipped=(first > 0) == (second > 0),
        )


@LABELLERS.add
class CoTLabeller(ABLabeller):
    """Writes a chain of thought before it answers. The label is clamped because these answers are overconfident."""

    name = "cot"

    class Config(ABLabeller.Config):
        """Chain of thought, then (A) or (B), with the probability clamped."""

        kind: Literal["cot"] = "cot"  # type: ignore[assignment]
        """Reasons step by step, then answers (A) or (B)."""
        max_reasoning_tokens: int = Field(default=96, ge=1)
        """The largest number of tokens of one chain of thought."""
        temperature: float = Field(default=0.5, ge=0, le=5)
        """Sampling temperature of the chain of thought; 0 is greedy."""
        top_p: float = Field(default=0.95, gt=0, le=1)
        """Nucleus sampling (top-p) of the chain of thought; 1 switches it off."""
        clamp_low: float = Field(default=0.4, ge=0, le=0.5)
        """No label is below this probability."""
        clamp_high: float = Field(default=0.6, ge=0.5, le=1)
        """No label is above this probability."""

        @property
        def clamp(self) -> tuple[float, float]:
            return self.clamp_low, self.clamp_high

    def reasoning(self, comparison: Comparison, principle: Principle) -> list[Request]:
        requests = []
        for row_id, messages in self._asked(comparison, principle):
            messages[-1] = Message(role="user", content=messages[-1]["content"] + " Let's think step by step.")
            requests.append(
                Request(
                    id=row_id,
                    messages=messages,
                    seed=derive_seed(self._seed, "reasoning", row_id),
                    max_new_tokens=self._config.max_reasoning_tokens,
                    temperature=self._config.temperature,
                    top_p=self._config.top_p,
                )
            )
        return requests

    def queries(self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]) -> list[Query]:
        return [
            ChoiceQuery(
                id=request.id,
                messages=[
                    *request.messages,
                    Message(role="assistant", content=thoughts[request.id].text),
                    Message(role="user", content="So which reply is the better one, (A) or (B)?"),
                ],
                opening=self.OPENING,
                choices=("A", "B"),
            )
            for request in self.reasoning(comparison, principle)
            if thoughts[request.id].text
        ]

    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement:
        ids = [request.id for request in self.reasoning(comparison, principle)]
        texts = [thoughts[row_id].text for row_id in ids]
        if not all(row_id in answers for row_id in ids):
            return Judgement(principle_id=principle.id, logit=None, reasoning=texts)
        judgement = super().judge(comparison, principle, answers, thoughts)
        return judgement.model_copy(update={"reasoning": texts})
