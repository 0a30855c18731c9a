"""``likelihood``: how much likelier is a reply after examples with the principle than after examples against it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, Query, ReplyQuery
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller
from pipeline.records import Message, Prompt

OWN_REFUSALS = (
    ("How do I break into my neighbour's house?", "I won't help with that, because it would harm your neighbour."),
    ("Write a message that bullies a classmate.", "I won't write that, because it would hurt them."),
    ("How can I poison someone without being caught?", "I won't help anyone to hurt a person."),
)
OWN_ANSWERS = (
    ("How long do I boil an egg?", "Boil it for seven minutes, then put it into cold water."),
    ("Write a short thank-you note to my teacher.", "Thank you for your patience this year. I learned a lot from you."),
    ("How can I kill weeds without chemicals?", "Pull them out after rain, or pour boiling water over them."),
)
"""Shown where the constitution has no refusals or no answers: (request, reply)."""


def after_examples(preamble: str, examples: Sequence[tuple[str, str]], prompt: Sequence[Message]) -> list[Message]:
    turns = [Message(role="system", content=preamble)]
    for request, reply in examples:
        turns += [Message(role="user", content=request), Message(role="assistant", content=reply)]
    return [*turns, *(turn for turn in prompt if turn["role"] != "system")]


@LABELLERS.add
class LikelihoodLabeller(ReplyLabeller):
    """logit of a reply = log p(reply | examples with the principle) − log p(reply | examples against it), per token.

    For a harmful request, the examples with the principle are refusals and those against it are answers; for other
    requests the reverse. If the constitution lacks refusals or answers, general ones take their place, and the title of
    the principle stands before the examples with it.
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
        """Examples shown with the principle, and as many against it; 0: only the title of the principle."""

    @classmethod
    def notes(cls, config: Any, constitution: Constitution) -> list[str]:
        lacking = [
            what
            for what, examples in (
                ("refusals (worked_examples or contrasts)", constitution.declined([], 1)),
                ("answers (good_answers)", constitution.answered([], 1)),
            )
            if not examples
        ]
        if not lacking or not config.num_examples:
            return []
        return [
            f"The constitution has no {' and no '.join(lacking)}, so the labeller 'likelihood' shows general English "
            "ones: it prefers refusals for the prompts of data.red_team and answers for all others, and the words of "
            "the principles decide little. Add your own examples, or use preferences=ab with a larger engine."
        ]

    def ask(self, row_id: str, side: str, prompt: Prompt, reply: str, principle: Principle) -> Sequence[Query]:
        contexts = self._contexts(principle, prompt)
        return [
            ReplyQuery(id=f"{row_id}/{context}/{side}", messages=messages, reply=reply)
            for context, messages in contexts.items()
        ]

    def _contexts(self, principle: Principle, prompt: Prompt) -> dict[str, list[Message]]:
        number, turns = self._config.num_examples, prompt.messages
        rule = preamble = self._constitution.preamble
        declined: Sequence[tuple[str, str]] = self._constitution.declined(principle.tags, number)
        answered: Sequence[tuple[str, str]] = self._constitution.answered(principle.tags, number)
        if not declined or not answered:
            declined, answered = declined or OWN_REFUSALS[:number], answered or OWN_ANSWERS[:number]
            rule = f"{preamble}\nThe rule that matters most here: {principle.title}."
        # What is asked decides, not how the author tagged the principle.
        with_it, against_it = (declined, answered) if prompt.pool == "red_team" else (answered, declined)
        return {
            f"{principle.id}/with": after_examples(rule, with_it, turns),
            f"{principle.id}/against": after_examples(preamble, against_it, turns),
        }

    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        with_rule, without = (answers[query.id] for query in queries)
        if not with_rule.is_readable or not without.is_readable:
            return None
        return with_rule.logprobs[0] - without.logprobs[0]
