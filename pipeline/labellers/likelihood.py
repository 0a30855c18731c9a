"""``likelihood``: how much likelier is a reply after examples with the principle than after examples against it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from pipeline.constitution.schema import Constitution, Principle
from pipeline.engines.base import Answer, Query, ReplyQuery
from pipeline.labellers.base import LABELLERS, LabellerConfig, ReplyLabeller
from pipeline.labellers.general import general_examples, language_of
from pipeline.records import Message, Prompt


def after_examples(preamble: str, examples: Sequence[tuple[str, str]], prompt: Sequence[Message]) -> list[Message]:
    turns = [Message(role="system", content=preamble)]
    for request, reply in examples:
        turns += [Message(role="user", content=request), Message(role="assistant", content=reply)]
    return [*turns, *(turn for turn in prompt if turn["role"] != "system")]


@LABELLERS.add
class LikelihoodLabeller(ReplyLabeller):
    """logit of a reply = log p(reply | examples with the principle) − log p(reply | examples against it), per token.

    For a harmful request, the examples with the principle are refusals and those against it are answers; for other
    requests the reverse. If the constitution also has harmless requests revised (``revise``), it is about more than
    declining: for those, its worked corrections are shown, too, the revisions with the principle and the poor replies
    against it. If the constitution lacks refusals or answers, general ones take their place, and the title of
    the principle stands before the examples with it.

    It reads ``prompt.pool``: the pool under which a prompt was filed decides which of two replies is better, and the
    model only measures which of them is the refusal. ``channel`` does not read the pool.
    """

    name = "likelihood"
    needs_reply_scores = True
    constitution_fields = ("preamble", "principles.title", "revise", "worked_examples", "good_answers", "contrasts")

    class Config(LabellerConfig):
        """Log-likelihood ratio of the reply, per token. The pool of the prompt decides which reply is better."""

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
            f"The constitution has no {' and no '.join(lacking)}, so the labeller 'likelihood' shows general ones "
            f"({', '.join(general_examples())}, by the language of the request): it prefers refusals for the prompts "
            "of data.red_team and answers for all others, and the words of the principles decide little. Add your own "
            "examples, or use preferences=ab with a larger engine."
        ]

    @property
    def knows_only_declining(self) -> bool:
        return self._config.num_examples > 0 and self._constitution.revise == ["red_team"]

    @property
    def _words_of_the_rules(self) -> str:
        return " ".join([self._constitution.preamble, *(rule.title for rule in self._constitution.principles)])

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
            general = general_examples()[language_of(prompt.request, self._words_of_the_rules)]
            declined, answered = declined or general.refusals[:number], answered or general.answers[:number]
            rule = f"{preamble}\nThe rule that matters most here: {principle.title}."
        # What is asked decides, not how the author tagged the principle.
        with_it, against_it = (declined, answered) if prompt.pool == "red_team" else (answered, declined)
        if prompt.pool != "red_team" and prompt.pool in self._constitution.revise:
            corrected = self._constitution.corrected(principle.tags, number)
            with_it = [*with_it, *((example.request, example.revision) for example in corrected)]
            against_it = [*against_it, *((example.request, example.poor_reply) for example in corrected)]
        return {
            f"{principle.id}/with": after_examples(rule, with_it, turns),
            f"{principle.id}/against": after_examples(preamble, against_it, turns),
        }

    def reply_logit(self, queries: Sequence[Query], answers: Mapping[str, Answer]) -> float | None:
        with_rule, without = (answers[query.id] for query in queries)
        if not with_rule.is_readable or not without.is_readable:
            return None
        return with_rule.logprobs[0] - without.logprobs[0]
