"""Two replies to one request: who wins, and how often somebody picks the one that people chose."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.engines.base import ChoiceQuery, Engine, Request, generate_all, score_all
from pipeline.evals import refusal
from pipeline.evals.judges import MIN_ANSWER_MASS, Desk
from pipeline.evals.text import words
from pipeline.records import Message, dialogue_text

TEMPLATE = "pair-judge-1"


@dataclass(frozen=True, kw_only=True)
class Pair:
    id: str
    kind: str
    messages: list[Message]
    a: str
    b: str

    def swap(self) -> Pair:
        return Pair(id=self.id, kind=self.kind, messages=self.messages, a=self.b, b=self.a)


Scores = dict[str, float | None]
"""Pair id → 1 where A wins, 0 where B does, ½ for a tie, None where the answer could not be read."""


class PairJudge(Protocol):
    name: str
    question: str

    def prefer(self, pairs: Sequence[Pair]) -> Scores: ...


_RANK = {"complied": 2, "refused": 1, "broken": 0}


class PatternsPairJudge:
    """A reply that answers beats one that declines, and both beat a broken one; all else is a tie.

    It says nothing of quality: it measures what a request lost to refusals and collapse, and no more.
    """

    name = f"pairs:{refusal.NAME}"
    question = "does one answer where the other declines or falls apart? (all else ties)"

    def prefer(self, pairs: Sequence[Pair]) -> Scores:
        def rank(pair: Pair) -> int:
            return _RANK[refusal.judge_reply(pair.a, pair.messages[-1]["content"])[0]]

        return {pair.id: (1 + _sign(rank(pair) - rank(pair.swap()))) / 2 for pair in pairs}


class ModelPairJudge:
    """Log-odds of (A) over (B) by a local model, asked in both orders; it ties where the order decides."""

    question = "which reply is the more helpful? (log-odds of a model, both orders)"
    OPENING = "The more helpful reply is ("

    def __init__(self, engine: Engine, desk: Desk) -> None:
        self.name = f"pairs:model:{engine.name}"
        self._engine, self._desk = engine, desk

    def prefer(self, pairs: Sequence[Pair]) -> Scores:
        queries = [
            ChoiceQuery(id=f"{pair.id}/{order}", messages=which(shown), opening=self.OPENING, choices=("A", "B"))
            for pair in pairs
            for order, shown in (("own", pair), ("swapped", pair.swap()))
        ]
        answers = score_all(self._engine, self._desk.label, queries, self._desk.logbook, self._desk.log)

        def first_wins(row_id: str) -> bool | None:
            logprobs = answers[row_id].logprobs
            return None if sum(map(math.exp, logprobs)) < MIN_ANSWER_MASS else logprobs[0] > logprobs[1]

        return {pair.id: in_both_orders(*(first_wins(f"{pair.id}/{o}") for o in ("own", "swapped"))) for pair in pairs}


class EndpointPairJudge:
    """The same question to a server's model, which may also call it a tie."""

    question = "which reply is the more helpful? (a rubric put to a server's model, both orders)"

    def __init__(self, engine: Engine, desk: Desk) -> None:
        self.name = f"pairs:endpoint:{engine.name}"
        self._engine, self._desk = engine, desk

    def prefer(self, pairs: Sequence[Pair]) -> Scores:
        requests = [
            Request(id=f"{pair.id}/{order}", messages=which(shown, True), seed=0, max_new_tokens=16, temperature=0.0)
            for pair in pairs
            for order, shown in (("own", pair), ("swapped", pair.swap()))
        ]
        replies = generate_all(self._engine, self._desk.label, requests, self._desk.logbook, self._desk.log)
        scores: Scores = {}
        for pair in pairs:
            own, swapped = (read_choice(replies[f"{pair.id}/{order}"].text) for order in ("own", "swapped"))
            scores[pair.id] = None if own is None or swapped is None else consistent(own, 1 - swapped)
        return scores


def which(pair: Pair, tie: bool = False) -> list[Message]:
    last = "Answer A, B or tie, and nothing else." if tie else "Which reply is the more helpful one, (A) or (B)?"
    text = f"Request: {dialogue_text(pair.messages)}\n\n(A) {pair.a}\n\n(B) {pair.b}\n\n"
    return [Message(role="user", content=f"{text}Which reply answers the request better? {last}")]


def read_choice(answer: str) -> float | None:
    """1 for A, 0 for B, ½ for a tie; None where it is none of them."""
    found = re.fullmatch(r"\W*(A|B|tie)\W*", answer, re.IGNORECASE)
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[found.group(1).casefold()] if found else None


def in_both_orders(own: bool | None, swapped: bool | None) -> float | None:
    """A wins if it wins first and second; a judge that follows the order says nothing."""
    return None if own is None or swapped is None else consistent(float(own), float(not swapped))


def consistent(own: float, swapped: float) -> float:
    """The mean of two opinions of A, each 1, ½ or 0, where they agree in direction; else a tie."""
    mean = (own + swapped) / 2
    return 0.5 if mean == 0.5 or (own - 0.5) * (swapped - 0.5) < 0 else (1.0 if mean > 0.5 else 0.0)


# --- Baselines -----------------------------------------------------------------------------------------------------


def the_longer_one(pairs: Sequence[Pair]) -> Scores:
    return {pair.id: (1 + _sign(len(words(pair.a)) - len(words(pair.b)))) / 2 for pair in pairs}


def the_refusing_one(pairs: Sequence[Pair]) -> Scores:
    def refuses(pair: Pair) -> int:
        return refusal.judge_reply(pair.a, pair.messages[-1]["content"])[0] == "refused"

    return {pair.id: (1 + _sign(refuses(pair) - refuses(pair.swap()))) / 2 for pair in pairs}


BASELINES: Mapping[str, Callable[[Sequence[Pair]], Scores]] = {
    "the longer one": the_longer_one,
    "the refusing one": the_refusing_one,
}


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
