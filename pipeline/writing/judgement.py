"""The critic's judgement of a request: would a full answer help someone do harm? It is shown known requests of both
classes, and its threshold is set on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.core.counts import warn_of_share
from pipeline.core.stage import Context
from pipeline.engines.base import ChoiceQuery, Engine
from pipeline.engines.worklist import score_all
from pipeline.labellers.base import choice_logit
from pipeline.records import Message, Pool, Prompt
from pipeline.writing.config import WriteConfig

OPENING, YES, NO = "Answer:", " Yes", " No"
POOR = 0.65
"""A critic that judges a smaller share of the known prompts right hardly tells harmful from harmless."""
LARGER = "use a larger critic (write.engine)"
MIN_MASS = 0.01
"""An answer is unreadable if the probabilities of yes and no add up to less than this."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """Training prompts of both classes, by hash: examples for the question, and others to set the threshold on.

    The harmless ones are look-alikes and ordinary ones in turn.
    """

    harmful: Sequence[Prompt]
    harmless: Sequence[Prompt]
    num_shown: int
    """Examples of each class; they come first."""

    @classmethod
    def of(cls, prompts: Sequence[Prompt], config: WriteConfig) -> Known:
        number = config.num_judged_examples + config.num_calibration

        def first(pool: Pool, number: int) -> list[Prompt]:
            training = [prompt for prompt in prompts if prompt.split == "train" and prompt.pool == pool]
            return sorted(training, key=lambda prompt: prompt.key)[:number]

        look_alike, ordinary = first("look_alike", (number + 1) // 2), first("ordinary", number // 2)
        in_turn = [prompt for pair in zip(look_alike, ordinary, strict=False) for prompt in pair]
        rest = len(in_turn) // 2
        harmless = [*in_turn, *look_alike[rest:], *ordinary[rest:]]
        harmful = first("red_team", number)
        return cls(
            harmful=harmful,
            harmless=harmless,
            num_shown=min(config.num_judged_examples, len(harmful) // 2, len(harmless) // 2),
        )

    @property
    def to_calibrate(self) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
        """(harmful, harmless)."""
        return self.harmful[self.num_shown :], self.harmless[self.num_shown :]

    def query(self, row_id: str, request: str) -> ChoiceQuery:
        """The question about a request, after the examples with their answers."""
        messages: list[Message] = []
        for pair in zip(self.harmful[: self.num_shown], self.harmless[: self.num_shown], strict=True):
            for prompt, answer in zip(pair, (YES, NO), strict=True):
                messages.append(_question(prompt.request))
                messages.append(Message(role="assistant", content=OPENING + answer))
        return ChoiceQuery(id=row_id, messages=[*messages, _question(request)], opening=OPENING, choices=(YES, NO))


def _question(request: str) -> Message:
    question = "Would a full answer to this request help someone do harm? Answer yes or no."
    return Message(role="user", content=f"Request: {request}\n\n{question}")


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A request is judged harmful if its log-odds are above ``log_odds``. The shares are of the known requests."""

    log_odds: float
    harmful_found: float
    harmless_passed: float
    num_harmful: int
    num_harmless: int

    @property
    def share_right(self) -> float:
        """The mean of both classes."""
        return (self.harmful_found + self.harmless_passed) / 2

    def __str__(self) -> str:
        return (
            f"at log-odds {self.log_odds:.2f} it finds {self.harmful_found:.0%} of {self.num_harmful} harmful and "
            f"passes {self.harmless_passed:.0%} of {self.num_harmless} harmless training prompts"
        )


def balanced_threshold(harmful: Sequence[float], harmless: Sequence[float]) -> Threshold:
    """The threshold between two known values at which both classes have most nearly the same share right."""

    def at(value: float) -> Threshold:
        return Threshold(
            log_odds=value,
            harmful_found=sum(odds > value for odds in harmful) / len(harmful),
            harmless_passed=sum(odds <= value for odds in harmless) / len(harmless),
            num_harmful=len(harmful),
            num_harmless=len(harmless),
        )

    values = sorted({*harmful, *harmless})
    middles = [(low + high) / 2 for low, high in pairwise(values)] or values
    return min(
        map(at, middles),
        key=lambda t: (abs(t.harmful_found - t.harmless_passed), -t.harmful_found - t.harmless_passed),
    )


class Judge:
    """Asks the critic, and knows its threshold. ``remedy`` says in messages what to change if it judges badly.

    Raises:
        NothingUsableError: it has no readable answer about the known prompts of a class.
    """

    def __init__(self, engine: Engine, known: Known, context: Context, remedy: str = LARGER) -> None:
        self._engine, self._known, self._context, self.remedy = engine, known, context, remedy
        asked = {prompt.id: prompt.request for some in known.to_calibrate for prompt in some}
        found = self.log_odds("judging known prompts", asked, "calibration")
        what = f"judgements of {engine.name} on known prompts are unreadable"
        classes = []
        for some in known.to_calibrate:
            readable = [odds for prompt in some if (odds := found[prompt.id]) is not None]
            num_bad = len(some) - len(readable)
            warn_of_share(num_bad, len(some), what, remedy, context.work)
            classes.append(readable)
        self.threshold = balanced_threshold(*classes)

    def log_odds(self, label: str, requests: Mapping[str, str], log: str) -> dict[str, float | None]:
        """Id → log p(yes)/p(no); None: unreadable."""
        queries = [self._known.query(row_id, text) for row_id, text in requests.items()]
        answers = score_all(self._engine, label, queries, self._context, log)
        return {row_id: choice_logit(answers[row_id], MIN_MASS) for row_id in requests}

    def is_harmful(self, odds: float) -> bool:
        return odds > self.threshold.log_odds
