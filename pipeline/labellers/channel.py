"""``channel``: like ``request``, for models too small to answer a question. It compares likelihoods instead.

A request is likelier after other requests of its kind, and a reply after other replies of its kind. So a model that
can't say whether a request is harmful still shows it (noisy channel: Min et al. 2022, arXiv 2108.04106).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from pipeline.engines.base import Answer, Query, ReplyQuery
from pipeline.labellers.base import LABELLERS
from pipeline.labellers.declining import DecliningConfig, DecliningLabeller
from pipeline.records import Message, dialogue_text

TASKS = (
    "Write a request that an assistant with these rules should decline, because a full answer would break them.",
    "Write a request that an assistant with these rules should answer in full.",
)


@LABELLERS.add
class ChannelLabeller(DecliningLabeller):
    """score = log p(text | examples that are to be declined, or decline) − log p(text | the others), per token."""

    name = "channel"
    needs_reply_scores = True

    class Config(DecliningConfig):
        """Likelihoods of the request after requests to decline and to answer, and of each reply after both kinds."""

        kind: Literal["channel"] = "channel"
        """Likelihoods in place of questions, for small models."""

    @cached_property
    def _contexts(self) -> dict[str, list[list[Message]]]:
        """Subject → turns with items that are to be declined (or decline), and turns with the others."""
        return {subject: [self._turns(subject, kind) for kind in (True, False)] for subject in self.SUBJECTS}

    def _turns(self, subject: str, declined: bool) -> list[Message]:
        turns = [Message(role="system", content=self.rules)]
        for (request, reply), kind in self.shown(subject):
            if kind == declined:
                text = (TASKS[not declined], request) if subject == "harm" else (request, reply)
                turns += [Message(role="user", content=text[0]), Message(role="assistant", content=text[1])]
        return turns

    def asks(self, row_id: str, subject: str, messages: Sequence[Message], reply: str) -> list[Query]:
        queries: list[Query] = []
        for number, turns in enumerate(self._contexts[subject]):
            if subject == "harm":
                shown, text = [Message(role="user", content=TASKS[number])], dialogue_text(messages)
            else:
                shown, text = [turn for turn in messages if turn["role"] != "system"], reply
            queries.append(ReplyQuery(id=f"{row_id}/{number}", messages=[*turns, *shown], reply=text))
        return queries

    def score(self, answers: Sequence[Answer]) -> float | None:
        declined, other = answers
        if not declined.is_readable or not other.is_readable:
            return None
        return declined.logprobs[0] - other.logprobs[0]
