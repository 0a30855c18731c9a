"""What the labels of a run are made of: who gave them, what turns them, and one sentence that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from pipeline.evals.results import Estimate
from pipeline.labellers.base import OPPOSITE_WORDS

AI, CONSTITUTION, POOL = "ai", "constitution", "pool"  # who gives labels; the last two are labellers in the records
COUNTERFACTUAL = "counterfactual"  # also a labeller in the records
HALF = 0.5

WHAT = {
    "words": "the principle's words",
    "order": "the order of the replies",
    "pool": "the pool (the file) of the prompt",
    "length": "the length of the replies",
}
HOW = {
    "words": "The principle says the opposite. Its question becomes: "
    f"{OPPOSITE_WORDS['preference_question'].format('…')} Its title becomes: {OPPOSITE_WORDS['title'].format('…')}. "
    "Its tags, its examples and everything else stay. A labeller that follows the constitution turns every label. One "
    "that does not understand “the opposite” turns few; then the words don't decide either. The labellers request and "
    "channel show all rules and examples at once: there, all titles change, and in the examples harmful and harmless "
    "requests change places.",
    "order": "The replies change places. A labeller of (A) or (B) is always asked in both orders, and its label is "
    "their mean; there, a label turns if the same letter wins in both orders, in at least half of its judgements.",
    "pool": "A harmful request is filed as a harmless look-alike, and any other prompt as a harmful request. The "
    "principle stays. (The pool may also decide which principles can be drawn; that is not counted here.)",
    "length": "The longer reply is cut to the length of the shorter one, at the end of a sentence or of a word. This "
    "can also remove what made that reply better or worse.",
}
EXPECTED = {"words": "all", "order": "none", "pool": "none", "length": "few"}
"""How many labels would turn if the labeller followed the constitution alone."""
_DECIDES = {
    "order": "the order of the replies",
    "pool": "the file in which the prompt stands",
    "length": "the length of the replies",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Turned(_Part):
    """What one change does to labels that preferred one reply."""

    share: Estimate
    """Those that don't prefer the same reply after the change."""
    num_undecided: int = 0
    """Of the turned ones, those that prefer neither reply."""
    num_unreadable: int = 0
    """Labels beside these, whose answer after the change can't be read."""
    num_not_changed: int = 0
    """Labels beside these that the change does not concern: both replies have the same length."""


class MadeOf(_Part):
    """Part of the metrics of the stage ``preferences``."""

    num_labels_by: dict[str, int]
    """``ai``, ``constitution``, ``pool`` or ``counterfactual`` → number of labels."""
    num_labels_undecided: int
    """Labels by an AI that prefer neither reply."""
    num_labels_probed: int
    """Labels by an AI that were asked for again."""
    labels_that_turn: dict[str, Turned]
    """Name of a change → what it does. Without those that were not measured."""

    @classmethod
    def of_metrics(cls, metrics: Mapping[str, Any]) -> Self | None:
        """None for a run of an earlier version, which did not measure it."""
        return cls.model_validate(metrics) if "num_labels_by" in metrics else None

    @property
    def num_labels(self) -> int:
        return sum(self.num_labels_by.values())

    @property
    def words_decide(self) -> bool:
        """Whether most labels by an AI turn with the principle's words, and with nothing else."""
        return _deciding(self.labels_that_turn) == ["words"]


def said(made: MadeOf) -> str:
    """What the labels are made of, for a reader who trains no models."""
    if not made.num_labels:
        return "There are no labels."
    given = [_number(made, who) + what for who, what in _GIVEN.items() if made.num_labels_by.get(who)]
    if not made.num_labels_by.get(AI):
        return f"{'; '.join(given)}; no model judged a reply."
    return " ".join(f"{sentence}." for sentence in (_number(made, AI) + _judged(made), *given))


_GIVEN = {
    CONSTITUTION: " labels are written in the constitution",
    POOL: " labels follow from the file in which the prompt stands, whatever the replies say",
    COUNTERFACTUAL: " labels are written beside a template, the same one for every group of people",
}


def _number(made: MadeOf, who: str) -> str:
    number = made.num_labels_by[who]
    return f"All {number:,}" if number == made.num_labels else f"{number:,} of {made.num_labels:,}"


def _judged(made: MadeOf) -> str:
    opening, turned = " labels are an AI's judgement", made.labels_that_turn
    if made.num_labels_undecided == made.num_labels_by[AI]:
        order = f"; {_share('order', turned)}" if _measured("order", turned) else ""
        return f"{opening}, but each of them prefers neither reply, so they teach nothing{order}"
    shares = [_share(name, turned) for name in WHAT if _measured(name, turned)]
    if not shares:
        return f"{opening}; what turns them was not measured"
    first, *others = shares
    listed = _listed([first, *(share.replace(" turn ", " ", 1) for share in others)])
    return f"{opening}; of these, {listed} (estimated from {made.num_labels_probed:,} of them): {_verdict(turned)}"


def _measured(name: str, turned: Mapping[str, Turned]) -> bool:
    return name in turned and turned[name].share.value is not None


def _share(name: str, turned: Mapping[str, Turned]) -> str:
    return f"{100 * (turned[name].share.value or 0):.0f}\u00a0% turn with {WHAT[name]}"


def _verdict(turned: Mapping[str, Turned]) -> str:
    deciding = _deciding(turned)
    others = [_DECIDES[name] for name in deciding if name != "words"]
    verb = "decide" if len(others) > 1 else "decides"
    if "words" in deciding:
        beside = f", but {_listed(others)} {verb} as well" if others else ""
        return f"the words of the constitution decide most of them{beside}"
    high = turned["words"].share.high if "words" in turned else None
    few = high is not None and high < HALF
    if others:
        end = (
            "not the words of the constitution"
            if few
            else "and it is open whether the words of the constitution do too"
        )
        return f"{_listed(others)} {verb}, {end}"
    if few:
        return "most stay when the principle says the opposite, so the words of the constitution decide few of them"
    return "this does not show whether the words of the constitution decide"


def _deciding(turned: Mapping[str, Turned]) -> list[str]:
    """The changes with which most labels turn: the whole interval is above one half."""
    return [name for name, found in turned.items() if found.share.low is not None and found.share.low > HALF]


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
