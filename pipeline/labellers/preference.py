"""AI feedback (Bai et al. 2022, section 4.1): what a labeller is asked, and how its answers become a soft label.

Every labeller turns a comparison and a principle into queries, and the answers into one logit of "reply A is
better". Logits are averaged over principles; the label is their sigmoid and stays soft.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline.chain.config import PreferencesConfig
from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, ChoiceQuery, Completion, Query, ReplyQuery, Request
from pipeline.records import Comparison, Judgement, Message, derive_seed, dialogue_text

TEMPLATE = "preference-2"  # part of every fingerprint; a golden test holds it to the wording below


# --- Pure functions ------------------------------------------------------------------------------------------------


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def combine_orders(logit_first: float, logit_second: float) -> float:
    """Debias by order: half the difference of "the reply shown first is better" asked both ways.

    Args:
        logit_first: log p(A)/p(B) with the replies in their own order.
        logit_second: the same with the replies swapped.

    Returns:
        The logit of "reply a is better". A judge that always says "A" gives the same logit twice, hence exactly 0.
    """
    return (logit_first - logit_second) / 2


def soft_label(logits: Sequence[float | None], clamp: tuple[float, float] = (0.0, 1.0)) -> float | None:
    """σ of the mean logit over principles, clamped; None where no principle gave an answer."""
    known = [logit for logit in logits if logit is not None]
    if not known:
        return None
    low, high = clamp
    return min(max(sigmoid(math.fsum(known) / len(known)), low), high)


def binary_entropy_bits(probability: float) -> float:
    """H(p) in bits: 1 for a coin, 0 for a certainty."""
    return -sum(p * math.log2(p) for p in (probability, 1 - probability) if p > 0)


def choice_logit(answer: Answer, min_mass: float) -> float | None:
    """log p(first choice)/p(second choice); None where the model meant to say neither."""
    if sum(map(math.exp, answer.logprobs)) < min_mass:
        return None
    first, second = answer.logprobs
    return first - second


# --- Wording -------------------------------------------------------------------------------------------------------


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


def under_principle(constitution: Constitution, principle: Principle, prompt: Sequence[Message]) -> list[Message]:
    rule = f"{constitution.preamble}\nThe rule that matters most here: {principle.title}."
    return [Message(role="system", content=rule), *(turn for turn in prompt if turn["role"] != "system")]


def after_examples(
    constitution: Constitution, examples: Sequence[tuple[str, str]], prompt: Sequence[Message]
) -> list[Message]:
    turns = [Message(role="system", content=constitution.preamble)]
    for request, reply in examples:
        turns += [Message(role="user", content=request), Message(role="assistant", content=reply)]
    return [*turns, *(turn for turn in prompt if turn["role"] != "system")]


# --- Labellers -----------------------------------------------------------------------------------------------------


class Labeller(Protocol):
    """``reasoning`` may ask for text first; ``queries`` ask for log-probabilities; ``judge`` reads the answers."""

    def reasoning(self, comparison: Comparison, principle: Principle) -> list[Request]: ...

    def queries(
        self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]
    ) -> list[Query]: ...

    def judge(
        self,
        comparison: Comparison,
        principle: Principle,
        answers: Mapping[str, Answer],
        thoughts: Mapping[str, Completion],
    ) -> Judgement: ...


class _Base:
    def __init__(self, config: PreferencesConfig, constitution: Constitution, seed: int) -> None:
        self._config, self._constitution, self._seed = config, constitution, seed

    def reasoning(self, comparison: Comparison, principle: Principle) -> list[Request]:
        return []


class ABLabeller(_Base):
    """Which is better, (A) or (B)? Asked in both orders."""

    OPENING = "The better reply is ("

    def queries(self, comparison: Comparison, principle: Principle, thoughts: Mapping[str, Completion]) -> list[Query]:
        return [
            ChoiceQuery(
                id=f"{comparison.id}/{principle.id}/{order}",
                messages=which_is_better(self._constitution, principle, shown),
                opening=self.OPENING,
                choices=("A", "B"),
            )
            for order, shown in _both_orders(comparison)
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
            for order, _ in _both_orders(comparison)
        )
        if first is None or second is None:
            return Judgement(principle_id=principle.id, logit=None)
        # The answer is turned round when the same letter wins both times.
        return Judgement(
            principle_id=principle.id,
            logit=combine_orders(first, second) * self._config.logit_scale,
            flipped=(first > 0) == (second > 0),
        )


class CoTLabeller(ABLabeller):
    """Thinks aloud before it answers. Its answers are overconfident, which is why the label is clamped."""

    def reasoning(self, comparison: Comparison, principle: Principle) -> list[Request]:
        requests = []
        for order, shown in _both_orders(comparison):
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


class ReplyLabeller(_Base, ABC):
    """Judges each reply on its own; a pair's logit is the difference. It can also give one reply a reward."""

    @abstractmethod
    def ask(
        self, row_id: str, side: str, prompt: Sequence[Message], reply: str, principle: Principle
    ) -> Sequence[Query]: ...

    @abstractmethod
    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        """What the answers say of the reply; None where the labeller said nothing."""

    def _sides(self, comparison: Comparison, principle: Principle) -> list[Sequence[Query]]:
        prompt = comparison.prompt.messages
        return [
            self.ask(comparison.id, side, prompt, reply, principle)
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


class PointwiseLabeller(ReplyLabeller):
    """Does this reply keep to the rule? Log-odds of yes over no."""

    def ask(
        self, row_id: str, side: str, prompt: Sequence[Message], reply: str, principle: Principle
    ) -> Sequence[Query]:
        return [
            ChoiceQuery(
                id=f"{row_id}/{principle.id}/{side}",
                messages=keeps_to_principle(self._constitution, principle, prompt, reply),
                opening="Answer:",
                choices=(" Yes", " No"),
            )
        ]

    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        return choice_logit(answers[queries[0].id], self._config.min_answer_mass)


class LikelihoodLabeller(ReplyLabeller):
    """How much likelier is the reply after examples that follow the principle than after examples of the opposite way?
    Per token, so that length has no say of its own.

    logit of a reply = log p(reply | examples with the principle) − log p(reply | examples against it)

    With a harmlessness principle the former decline and the latter answer; with any other it is the other way round.
    A constitution without examples of both kinds is asked with its rule in words, against no rule at all.
    """

    def ask(
        self, row_id: str, side: str, prompt: Sequence[Message], reply: str, principle: Principle
    ) -> Sequence[Query]:
        contexts = self._contexts(principle, prompt)
        return [
            ReplyQuery(id=f"{row_id}/{context}/{side}", messages=messages, reply=reply)
            for context, messages in contexts.items()
        ]

    def _contexts(self, principle: Principle, prompt: Sequence[Message]) -> dict[str, list[Message]]:
        number = self._config.num_examples
        declined = self._constitution.declined(principle.tags, number)
        answered = self._constitution.answered(principle.tags, number)
        if not declined or not answered:
            return {principle.id: under_principle(self._constitution, principle, prompt), "plain": list(prompt)}
        harmless = "harmlessness" in principle.tags
        with_it, against_it = (declined, answered) if harmless else (answered, declined)
        return {
            f"{principle.id}/with": after_examples(self._constitution, with_it, prompt),
            f"{principle.id}/against": after_examples(self._constitution, against_it, prompt),
        }

    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        with_rule, without = (answers[query.id].logprobs[0] for query in queries)
        return with_rule - without


def _both_orders(comparison: Comparison) -> tuple[tuple[str, Comparison], tuple[str, Comparison]]:
    return ("own", comparison), ("swapped", comparison.swap())


LABELLERS: dict[str, type[ABLabeller | CoTLabeller | PointwiseLabeller | LikelihoodLabeller]] = {
    "ab": ABLabeller,
    "cot": CoTLabeller,
    "pointwise": PointwiseLabeller,
    "likelihood": LikelihoodLabeller,
}


def make_labeller(config: PreferencesConfig, constitution: Constitution, seed: int) -> Labeller:
    return LABELLERS[config.labeller](config, constitution, seed)


def label_clamp(config: PreferencesConfig) -> tuple[float, float]:
    return (config.clamp_low, config.clamp_high) if config.labeller == "cot" else (0.0, 1.0)
