"""Choices by votes, for servers that give no log-probabilities: sampled answers are counted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.core.stage import Cost
from pipeline.engines.base import (
    Answer,
    Ask,
    ChoiceQuery,
    Completion,
    EngineConfig,
    Failure,
    Request,
    StreamingEngine,
)
from pipeline.engines.prompts import with_instruction
from pipeline.records import derive_seed

MAX_TOKENS = 16  # of one vote


def cost_of_choices(engine: EngineConfig, num_queries: int, tokens: int) -> Cost:
    """What so many choice queries cost; where votes decide, each needs several calls, which write an answer.

    Args:
        tokens: read by one call.
    """
    num_calls = num_queries * max(engine.num_votes, 1)
    num_written = num_queries * engine.num_votes * MAX_TOKENS
    return Cost(num_calls=num_calls, num_tokens_written=num_written, num_tokens_read=num_calls * tokens)


class VotingEngine(StreamingEngine):
    """Answers a choice query by ``num_votes`` sampled replies. Other asks are answered by ``engine``.

    The log-probability of a choice is that of its share, (votes + 1) / (all votes + number of choices). A reply that
    does not name exactly one choice counts for none. Without a readable vote the answer is unreadable.
    """

    def __init__(self, engine: StreamingEngine, num_votes: int) -> None:
        self.name, self.num_votes = engine.name, num_votes
        self.price = engine.price
        self.max_failed_share, self.asks_from_one_rank = engine.max_failed_share, engine.asks_from_one_rank
        self._engine = engine

    def answers(self, asks: Sequence[Ask]) -> Iterator[Completion | Answer | Failure]:
        asked: list[Ask] = [ask for ask in asks if not isinstance(ask, ChoiceQuery)]
        query_of: dict[str, ChoiceQuery] = {}
        for query in asks:
            if isinstance(query, ChoiceQuery):
                votes = [self._vote(query, number) for number in range(self.num_votes)]
                query_of |= dict.fromkeys((vote.id for vote in votes), query)
                asked += votes
        given: dict[str, list[Completion | Answer | Failure]] = {}
        for result in self._engine.answers(asked):
            if result.id not in query_of:
                yield result
                continue
            query = query_of[result.id]
            given.setdefault(query.id, []).append(result)
            if len(given[query.id]) == self.num_votes:
                yield _counted(query, given.pop(query.id))

    def _vote(self, query: ChoiceQuery, number: int) -> Request:
        return Request(
            id=f"{query.id}#{number}",
            messages=with_instruction(query),
            seed=derive_seed(0, query.id, "vote", number),
            max_new_tokens=MAX_TOKENS,
            temperature=1.0,
        )


def _counted(query: ChoiceQuery, results: Sequence[Completion | Answer | Failure]) -> Answer | Failure:
    failures = [result for result in results if isinstance(result, Failure)]
    if failures:
        return Failure(id=query.id, reason=failures[0].reason)
    completions = [result for result in results if isinstance(result, Completion)]
    counted: Any = {
        "num_tokens": sum(completion.num_tokens for completion in completions),
        "num_prompt_tokens": sum(completion.num_prompt_tokens for completion in completions),
    }
    named = [named_choice(completion.text, query.choices) for completion in completions]
    if not any(named):
        refused = all(completion.finish == "refused" for completion in completions)
        return Answer(id=query.id, logprobs=[], refused=refused, **counted)
    total = len(results) + len(query.choices)
    logprobs = [math.log((named.count(choice) + 1) / total) for choice in query.choices]
    return Answer(id=query.id, logprobs=logprobs, **counted)


def named_choice(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a reply names, as ``A``, ``(A)``, ``A.`` or ``A: because``; None if it names none, or several."""
    found = [choice for choice in choices if _names(text, re.escape(choice.strip()))]
    return found[0] if len(found) == 1 else None


def _names(text: str, choice: str) -> bool:
    """``A better one`` names no choice A: a letter alone must end there, or stand in brackets."""
    return bool(re.match(rf"\W*{choice}\s*(?:[).:,;!*\n]|$)", text, re.IGNORECASE) or re.search(rf"\({choice}\)", text))
