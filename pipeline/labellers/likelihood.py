"""``likelihood``: how much likelier is a reply after examples with the principle than after examples against it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, Query, ReplyQuery
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller
from pipeline.records import Message, Prompt


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


@LABELLERS.add
class LikelihoodLabeller(ReplyLabeller):
    """logit of a reply = log p(reply | examples with the principle) − log p(reply | examples against it), per token.

    For a harmful request, the examples with the principle are refusals and those against it are answers; for other
    requests the reverse. Without examples of both kinds, it is log p(reply | rule in words) − log p(reply | no rule).
    """

    name = "likelihood"
    needs_reply_scores = True
    constitution_fields = ("preamble", "principles.title", "worked_examples", "good_answers", "contrasts")

    class Config(LabellerConfig):
        """Log-likelihood ratio of the reply, per token."""

        kind: Literal["likelihood"] = "likelihood"
        """Is the reply likelier after examples with the principle, or against it?"""
        logit_scale: float = Field(default=2.0, gt=0)
        """Every logit is multiplied by this."""
        num_examples: int = Field(default=3, ge=0)
        """Examples shown with the principle, and as many against it."""

    @classmethod
    def notes(cls, config: Any, constitution: Constitution) -> list[str]:
        if constitution.declined([], config.num_examples) and constitution.answered([], config.num_examples):
            return []
        return [
            "preferences.labeller.kind is 'likelihood', but the constitution has no refusals or no answers to compare "
            "with (worked_examples or contrasts, and good_answers; num_examples above 0): replies are scored with the "
            "title of the principle instead."
        ]

    def ask(self, row_id: str, side: str, prompt: Prompt, reply: str, principle: Principle) -> Sequence[Query]:
        contexts = self._contexts(principle, prompt)
        return [
            ReplyQuery(id=f"{row_id}/{context}/{side}", messages=messages, reply=reply)
            for context, messages in contexts.items()
        ]

    def _contexts(self, principle: Principle, prompt: Prompt) -> dict[str, list[Message]]:
        number, turns = self._config.num_examples, prompt.messages
        declined = self._constitution.declined(principle.tags, number)
        answered = self._constitution.answered(principle.tags, number)
        if not declined or not answered:
            return {principle.id: under_principle(self._constitution, principle, turns), "plain": list(turns)}
        # What is asked decides, not how the author tagged the principle.
        with_it, against_it = (declined, answered) if prompt.pool == "red_team" else (answered, declined)
        return {
            f"{principle.id}/with": after_examples(self._constitution, with_it, turns),
            f"{principle.id}/against": after_examples(self._constitution, against_it, turns),
        }

    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        with_rule, without = (answers[query.id] for query in queries)
        if not with_rule.is_readable or not without.is_readable:
            return None
        return with_rule.logprobs[0] - without.logprobs[0]
