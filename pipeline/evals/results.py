"""Records of the results of an evaluation: ``results.json`` is one ``Results``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeGuard

from pydantic import BaseModel, ConfigDict

from pipeline.records import Pool

Direction = Literal["lower", "higher"]
Said = Literal["better", "worse", "differs", "no evidence of change", "not measured"]
"""The verdict on a change. ``differs``: the measure changed, and neither direction is better."""
Role = Literal["labeller", "reward model", "judge", "baseline"]
DIRECT = "direct"  # the name of "no attack"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Part):
    """A number with its confidence interval. ``value`` is None if nothing could be counted.

    ``total`` is the number of cases; ``count``, for rates only, is the number of cases with the outcome.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int | None = None
    total: int = 0

    def __str__(self) -> str:
        if self.value is None:
            return f"– ({self.total})"
        bounds = (self.low, self.high)
        if self.count is not None:
            shown = f" [{100 * bounds[0]:.0f}, {100 * bounds[1]:.0f}]" if _known(bounds) else ""
            return f"{100 * self.value:.0f} %{shown} ({self.total})"
        return _short(self.value) + (f" [{_short(bounds[0])}, {_short(bounds[1])}]" if _known(bounds) else "")


def _known(bounds: tuple[float | None, float | None]) -> TypeGuard[tuple[float, float]]:
    return None not in bounds


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Change(_Part):
    """Two models on the same prompts: the mean paired difference (after − before), its interval and the verdict.

    ``p`` is from McNemar's test for rates, else from a sign-flip test. ``p_corrected`` is corrected over the changes of
    one pair of models (Holm; over principles: Benjamini & Hochberg). For rates, ``num_gained`` and ``num_lost`` count
    the changes from 0 to 1 and from 1 to 0.
    """

    measure: str
    before: str
    after: str
    difference: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    num_gained: int | None = None
    num_lost: int | None = None
    verdict: Said


class Cell(_Part):
    """Attack success of one model, for one kind of harm or ``all``, under one attack or ``all``."""

    model: str
    kind: str
    attack: str
    success: Estimate


class MannerRate(_Part):
    """One measure of one model on the requests of one manner. ``held_out``: the model was not trained on the manner."""

    model: str
    measure: str
    manner: str
    held_out: bool
    rate: Estimate


class Disparity(_Part):
    """Differences between the groups of one attribute, with the group swapped in the same requests.

    ``rates`` is by group. ``difference`` is the highest minus the lowest rate, which is above zero by chance even if
    all groups are treated alike; so ``p`` is from a permutation test (groups shuffled within each template).
    """

    model: str
    attribute: str
    metric: Literal["refused", "harm"]
    rates: dict[str, Estimate]
    difference: Estimate
    ratio: Estimate
    p: float | None
    p_corrected: float | None


class Rating(_Part):
    """Bradley-Terry strength on the Elo scale, the first model at 1000."""

    model: str
    elo: float
    low: float
    high: float


class PairAccuracy(_Part):
    """Share of pairs for which ``who`` picks people's choice. Ties count half; unanswered pairs do not count."""

    who: str
    role: Role
    dataset: str
    kind: str
    accuracy: Estimate
    num_unanswered: int = 0


class Disagreement(_Part):
    """A labelled reply on which the judge disagrees with the label."""

    id: str
    request: str
    reply: str
    label: str
    judged: str
    evidence: str


class JudgeCard(_Part):
    """A judge and its accuracy on the built-in labelled replies."""

    name: str
    question: str
    shared_with_training: bool
    accuracy: Estimate
    unseen: Estimate
    """Accuracy on the replies that the authors of the patterns had not seen."""
    by_class: dict[str, Estimate]
    """label → recall: of the replies with this label, the share that the judge gives the same label"""
    confusion: dict[str, dict[str, int]]
    """label → judged outcome → number of replies"""
    disagreements: list[Disagreement]
    num_unjudged: int
    """Number of evaluated (not labelled) replies for which the judge's answer could not be read."""

    @property
    def beats_one_verdict(self) -> bool:
        """Whether its whole interval is above the accuracy of a judge that always gives the most frequent label."""
        most = max((sum(row.values()) for row in self.confusion.values()), default=0)
        return self.accuracy.low is not None and self.accuracy.low > most / self.accuracy.total


class Probe(_Part):
    """A garak probe: the model resisted ``num_passed`` of ``num_attempts`` attempts."""

    model: str
    probe: str
    detector: str
    num_attempts: int
    num_passed: int


class PoolKnowledge(_Part):
    """What the probe says of the evaluated requests of one pool, and what the models do with the same requests."""

    pool: Pool
    auc: Estimate | None
    """Of the harmful requests against these; None for the harmful requests themselves."""
    flagged: Estimate
    """Share that the probe takes for harmful."""
    refused: dict[str, Estimate]
    """model → share refused"""
    refused_of_flagged: Estimate
    """Of those that the probe takes for harmful, the share that the last model refused."""
    refused_of_passed: Estimate
    """Of those that the probe takes for harmless, the share that the last model refused."""
    gap: Estimate
    """Share that the last model refused minus ``flagged``, paired by request, with the interval of ``paired_rates``."""
    separation: Estimate | None = None
    """The ``gap`` of the harmful requests minus this one: above zero, refusals tell the two kinds apart better than the
    probe does. It has Newcombe's interval. None for the harmful requests themselves."""


class KnowsDoes(_Part):
    """A linear probe on the first model's states beside what the models refused. The probe learned training prompts."""

    layer: int
    num_layers: int
    layer_aucs: dict[int, float]
    """layer → AUC of harmful against harmless training prompts, by cross-validation; the highest one is used"""
    num_learned: dict[Pool, int]
    num_left_out: int
    """Evaluated requests without states: they do not fit the context, or a number is too large for the precision."""
    pools: list[PoolKnowledge]


class Results(_Part):
    models: list[str]
    """The others are compared with the first."""
    suites: list[str]
    measures: dict[str, dict[str, Estimate]]
    """model → measure → estimate"""
    judged: list[str] = []
    """The measures that follow from the judge's verdicts."""
    changes: list[Change] = []
    cell_changes: list[Change] = []
    """The last model compared with the first, by kind of harm and by attack; ``measure`` is ``measure:cell``."""
    attacks: list[Cell] = []
    manners: list[MannerRate] = []
    knows_does: KnowsDoes | None = None
    """None: not measured; a note says why, unless it is switched off."""
    bias: list[Disparity] = []
    trained_attributes: list[str] = []
    """The attributes of ``bias`` about whose groups the run trained on counterfactual prompts."""
    ratings: list[Rating] = []
    pairs: list[PairAccuracy] = []
    judges: list[JudgeCard] = []
    probes: list[Probe] = []
    notes: list[str] = []
    """Notes for readers, such as dropped rows, judges shared with training and suites that were not run."""

    def with_measures(self, more: Mapping[str, Mapping[str, Estimate]]) -> Results:
        """The same results with more measures. ``more``: model → measure → estimate."""
        measures = {model: {**mine, **more.get(model, {})} for model, mine in self.measures.items()}
        return self.model_copy(update={"measures": measures})


Decided = Literal["PASS", "FAIL", "OVERRIDDEN", "UNDECIDED"]


class Ruling(_Part):
    """The verdict on one guideline. ``OVERRIDDEN``: it fails, and a person accepts that; see ``reason``."""

    id: str
    title: str
    why: str
    measure: str
    limit: str
    found: str
    verdict: Decided
    reason: str


class Gate(_Part):
    """FAIL if any guideline fails; else OVERRIDDEN if any was overridden; else UNDECIDED if any is; else PASS."""

    guidelines: str
    verdict: Decided
    rulings: list[Ruling]
