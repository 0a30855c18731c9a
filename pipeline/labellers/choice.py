"""``ab`` and ``cot``: which reply is better, (A) or (B)? (Bai et al. 2022, section 4.1)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, ChoiceQuery, Completion, Query, Request
from pipeline.labellers.base import LABELLERS, Labeller, LabellerConfig, both_orders, choice_logit, combine_orders
from pipeline.records import Comparison, Judgement, Message, derive_seed, dialogue_text


def which_is_better(constitution: Constitution, principle: Principle, comparison: Comparison) -> list[Message]:
    return [
        Message(role="system", content=constitution.preamble),
        Message(
            role="user",
            content=f"Request: {dialogue_text(comparison.prompt.messages)}\n\n"
            f"{principle.preference_question}\n\n"
            f"(A) {comparison.reply_a}\n\n(B) {comparison.reply_b}\n\nIs reply (A) or reply (B) the better one?",
        ),
    ]


@LABELLERS.add
class ABLabeller(Labeller):
    """Which is better, (A) or (B)? Asked in both orders."""

    name = "ab"
    asks_both_orders = True
    constitution_fields = ("preamble", "principles.preference_question")
    OPENING = "The better reply is ("

    class Config(LabellerConfig):
        """(A) or (B), asked in both orders and averaged in logit space."""

        kind: Literal["ab"] = "ab"
        """Which reply is better, (A) or (B)?"""
        min_answer_mass: float = Field(default=0.01, ge=0, le=1)
        """An answer is unreadable if the probabilities of (A) and (B) add up to less than this."""

    def queries(self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]) -> list[Query]:
        return [
            ChoiceQuery(
                id=f"{comparison.id}/{principle.id}/{order}",
                messages=which_is_better(self._constitution, principle, shown),
                opening=self.OPENING,
                choices=("A", "B"),
            )
            for order, shown in both_orders(comparison)
        ]

    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement:
        first, second = (
            choice_logit(answers[f"{comparison.id}/{principle.id}/{order}"], self._config.min_answer_mass)
            for order, _ in both_orders(comparison)
        )
        if first is None or second is None:
            return Judgement(principle_id=principle.id, logit=None)
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
        for order, shown in both_orders(comparison):
            messages = which_is_better(self._constitution, principle, shown)
            messages[-1] = Message(role="user", content=messages[-1]["content"] + " Let's think step by step.")
            row_id = f"{comparison.id}/{principle.id}/{order}"
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
