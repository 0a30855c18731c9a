"""Before a labeller labels: how often it agrees with people on the shipped pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from pipeline.constitution.schema import Constitution
from pipeline.core import distributed
from pipeline.core.log import say, warn
from pipeline.core.stage import Cost
from pipeline.engines.base import Engine, EngineConfig, chooser
from pipeline.engines.worklist import Logbook
from pipeline.evals.accuracy import shuffled
from pipeline.evals.label_accuracy import right_by_kind, right_by_pair
from pipeline.evals.results import Estimate
from pipeline.evals.statistics import share_of_right
from pipeline.evals.suites.pairs import PairsConfig, read_pairs
from pipeline.labellers.base import LabellerConfig
from pipeline.labellers.label import cost, label
from pipeline.records import Comparison

PURPOSE = "checked"  # names the logs, and is part of the seed that draws principles
METRIC = "labeller_checked"
NUM_WORDS = 8  # with which the other reply begins, where openings are compared


class Checked(BaseModel):
    """Part of the metrics of the stage ``preferences``. Ties count half; unreadable answers don't count."""

    model_config = ConfigDict(frozen=True)

    right: Estimate
    by_kind: dict[str, Estimate]
    num_unreadable: int

    @classmethod
    def of_metrics(cls, metrics: Mapping[str, Any]) -> Self | None:
        """None where no labeller was checked."""
        found = metrics.get(METRIC)
        return cls.model_validate(found) if found else None

    @property
    def may_guess(self) -> bool:
        """Whether the labeller may be right on half of such pairs, as guessing would be."""
        return self.right.low is None or self.right.low <= 0.5

    def said(self) -> str:
        """How often it is right, for a reader who trains no models."""
        kinds = [f"{kind.replace('_', '-')} {_percent(share)}" for kind, share in self.by_kind.items()]
        unread = f"; unreadable: {self.num_unreadable}" if self.num_unreadable else ""
        if self.right.value is None:
            return "Before it labelled, the labeller gave no readable answer about the shipped pairs."
        low, high = (f"{100 * (bound or 0):.0f}" for bound in (self.right.low, self.right.high))
        return (
            f"Before it labelled, the labeller agreed with people on {_percent(self.right)} [{low}, {high}] of "
            f"{self.right.total} shipped pairs ({', '.join(kinds)}{unread})."
        )


def check_labeller(
    engine: Engine,
    config: LabellerConfig,
    constitution: Constitution,
    seed: int,
    logbook: Logbook,
    num_pairs: int,
    opening: str = "",
) -> Checked:
    """Label so many shipped pairs, and warn if the labeller may be guessing. All ranks must call it.

    Args:
        opening: of refusals, if the run compares openings only. Then the pairs are about whether to decline: half of
            the requests are harmful, and half are look-alikes.
    """
    pairs = _pairs(num_pairs, opening)
    shown, turned = shuffled(pairs)
    right = right_by_pair(label(shown, engine, config, constitution, seed, logbook, PURPOSE), turned)
    checked = Checked(
        right=share_of_right(list(right.values())),
        by_kind=right_by_kind(pairs, right, 0.95),
        num_unreadable=len(pairs) - len(right),
    )
    if distributed.is_main():
        say(f"  {checked.said()}")
        if checked.may_guess:
            warn(
                f"nothing shows that the labeller {config.kind}:{chooser(engine)} does better than guessing on pairs "
                "about harm, help and honesty. If your constitution is about these, stop here (Ctrl-C) and use a "
                "larger labeller (engine), or another one (preferences); scripts/label_accuracy.py compares them. "
                "preferences.num_checked=0 turns this check off."
            )
    return checked


def cost_of_check(
    engine: EngineConfig,
    config: LabellerConfig,
    constitution: Constitution,
    seed: int,
    num_pairs: int,
    opening: str = "",
) -> Cost:
    """What ``check_labeller`` asks at most."""
    return cost(_pairs(num_pairs, opening), engine, config, constitution, seed, PURPOSE, tokens=0)


def _pairs(num_pairs: int, opening: str) -> list[Comparison]:
    """Pairs in which reply A is the right one."""
    if not num_pairs:
        return []
    if not opening:
        return read_pairs(PairsConfig(source="builtin", num_pairs=num_pairs), "pairs", "pair", "test", [])
    pairs = read_pairs(PairsConfig(source="builtin"), "pairs", "pair", "test", [])
    kinds = [[pair for pair in pairs if pair.prompt.kind == kind] for kind in ("harmless", "look_alike")]
    return [_begun(pair, opening) for both in zip(*kinds, strict=False) for pair in both][:num_pairs]


def _begun(pair: Comparison, opening: str) -> Comparison:
    """The opening of a refusal, which is right for a harmful request, and how the reply that answers begins."""
    refuses = pair.prompt.kind == "harmless"
    answer = " ".join((pair.reply_b if refuses else pair.reply_a).split()[:NUM_WORDS])
    replies = (opening, answer) if refuses else (answer, opening)
    sides = {"reply_a": replies[0], "reply_b": replies[1], "opening": opening, "begun_a": True, "begun_b": True}
    return pair.model_copy(update=sides)


def _percent(share: Estimate) -> str:
    return "–" if share.value is None else f"{100 * share.value:.0f}\u00a0%"
