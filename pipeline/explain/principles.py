"""Which principle did the work, from the records of the run?"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.errors import NotMeasuredError
from pipeline.core.settings import Settings
from pipeline.evals.made_of import CONSTITUTION, COUNTERFACTUAL, POOL
from pipeline.explain.base import Findings, Material, Question
from pipeline.explain.principle_counts import (
    Labelled,
    Pair,
    Revised,
    contradictions,
    differ,
    edit_shares,
    labelled,
    logits_of,
    near_duplicates,
    pairs,
    revised,
    steps,
)


class PrinciplesConfig(Settings):
    """Which principle did the work, from the records of the run alone: no model is asked."""

    enabled: bool = True
    """Answer this question."""
    min_labels: int = Field(default=20, ge=1)
    """Of a principle with fewer labels beside others, it is not said that it is never decisive or labels at random, and
    of two principles with fewer labels in common, it is not said that they are near-duplicates."""


class Principle(BaseModel):
    """What one principle did. None: it was never drawn there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    """The id of a principle that is no longer in the constitution."""
    critiques: Revised | None
    labels: Labelled | None


class PrinciplesFindings(Findings):
    """What each principle did, and those that stand out."""

    num_exchanges: int
    critiques_differ_p: float | None
    """p of "critiques under one principle change as much as under another" (Kruskal-Wallis); None: can't be tested."""
    num_labels: int
    """Labels that an AI gave under principles."""
    num_labels_by_pool: int
    num_labels_by_constitution: int
    num_labels_by_counterfactuals: int = 0
    min_labels: int
    principles: list[Principle]
    """Those of the constitution without weight 0, in its order, then others that were drawn."""
    pairs: list[Pair]
    """Two principles that judged a comparison both, in the same order."""
    never_drawn: list[str]
    never_decisive: list[str]
    """No label turns without them."""
    at_random: list[str]
    """They agree with the other principles about as often as not: the interval covers one half."""
    near_duplicates: list[tuple[str, str]]
    contradictions: list[tuple[str, str]]
    """They agree significantly less often than not."""

    def titled(self, principle_id: str) -> str:
        return next(principle.title for principle in self.principles if principle.id == principle_id)


class Principles(Question):
    """Which principle did the work, from the records of the run?"""

    name = "principles"

    def answer(self, config: PrinciplesConfig, material: Material) -> PrinciplesFindings:
        revisions = steps(material.exchanges)
        judged = [preference for preference in material.preferences if preference.judgements]
        used = {*revisions, *(j.principle_id for preference in judged for j in preference.judgements)}
        if not used:
            raise NotMeasuredError("no critique and no label of this run names a principle")
        titles = {rule.id: rule.title for rule in material.constitution.principles if rule.weight or rule.id in used}
        titles |= {name: name for name in sorted(used - set(titles))}
        clamp, confidence = material.context.labeller.clamp, material.confidence
        labels = {name: labelled(name, judged, clamp, confidence) for name in titles} if judged else {}
        found = [
            Principle(
                id=name,
                title=title,
                critiques=revised(revisions[name], confidence) if name in revisions else None,
                labels=labels[name] if name in labels and labels[name].num_labels else None,
            )
            for name, title in titles.items()
        ]
        both = pairs([logits_of(preference) for preference in judged], list(titles), confidence)
        by = [preference.labeller for preference in material.preferences]
        return PrinciplesFindings(
            num_exchanges=sum(bool(exchange.revisions) for exchange in material.exchanges),
            critiques_differ_p=differ([edit_shares(mine) for mine in revisions.values()]),
            num_labels=len(judged),
            num_labels_by_pool=by.count(POOL),
            num_labels_by_constitution=by.count(CONSTITUTION),
            num_labels_by_counterfactuals=by.count(COUNTERFACTUAL),
            min_labels=config.min_labels,
            principles=found,
            pairs=both,
            never_drawn=[rule.id for rule in found if not rule.critiques and not rule.labels],
            **_standing_out(found, both, config.min_labels, 1 - confidence),
        )


def _standing_out(found: Sequence[Principle], both: Sequence[Pair], least: int, level: float) -> dict[str, list]:
    labels = {rule.id: rule.labels for rule in found if rule.labels}
    return {
        "never_decisive": [
            name for name, mine in labels.items() if mine.turned.total >= least and not mine.turned.count
        ],
        "at_random": [name for name, mine in labels.items() if mine.with_others.total >= least and _covers_half(mine)],
        "near_duplicates": near_duplicates(both, least),
        "contradictions": contradictions(both, level),
    }


def _covers_half(mine: Labelled) -> bool:
    low, high = mine.with_others.low, mine.with_others.high
    return low is not None and high is not None and low <= 0.5 <= high
