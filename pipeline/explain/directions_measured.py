"""From hidden states and verdicts to what is seen and what is declined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, product

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import NotMeasuredError
from pipeline.engines.states import States
from pipeline.evals.knows_does import SUITES
from pipeline.evals.probe import group_of, is_harmful
from pipeline.evals.results import DIRECT, Estimate
from pipeline.evals.statistics import auc, bootstrap, resampled, wilson
from pipeline.explain.directions_fit import Fit, Labelled, compared, cosine, expected_cosine, fit
from pipeline.explain.directions_found import Cosine, Family, LayerAuc, Pair, Point, Seen
from pipeline.records import POOLS, Case, Pool, Prompt, Verdict

HARMLESS: tuple[Pool, ...] = ("look_alike", "ordinary")
MIN_DECLINED = 10  # training prompts that the model declined and as many that it answered, in pools with both
MIN_COMPARED = MIN_DECLINED / 2  # Σ pn / (p + n) over the pools: as 10 declined and 10 answered prompts of one pool
LOWER_SHARE = 0.8  # the refusal direction comes from a layer below this share (Arditi et al. 2024, appendix C)


def evaluated(verdicts: Iterable[Verdict]) -> list[Case]:
    """The cases of the suites of requests, with and without an attack."""
    return [v.case for v in verdicts if SUITES.intersection(v.case.suites) and v.case.group is None]


@dataclass(frozen=True)
class Read:
    """The states of one model that are numbers: of training prompts, and of the cases that are asked.

    ``learned_states``, ``asked_states``: (n, layers, hidden).
    """

    layers: list[int]
    num_layers: int
    learned: list[Prompt]
    learned_states: NDArray[np.float32]
    asked: list[Case]
    asked_states: NDArray[np.float32]

    @classmethod
    def of(cls, states: States, learned: Sequence[Prompt], asked: Sequence[Case]) -> Read:
        """``states``: of the training prompts and, after them, of the cases."""
        of_learned, of_asked = np.split(states.usable, [len(learned)])
        values_learned, values_asked = np.split(states.values, [len(learned)])
        return cls(
            states.layers,
            states.num_layers,
            list(compress(learned, of_learned)),
            values_learned[of_learned],
            list(compress(asked, of_asked)),
            values_asked[of_asked],
        )

    @property
    def groups(self) -> list[str]:
        return [group_of(prompt) for prompt in self.learned]

    @property
    def pools(self) -> NDArray[np.str_]:
        return np.array([prompt.pool for prompt in self.learned])

    @property
    def harmful(self) -> Labelled:
        """The training prompts as harmful and harmless ones."""
        return Labelled.of(self.learned_states, np.array([is_harmful(prompt) for prompt in self.learned]), self.groups)


@dataclass(frozen=True)
class Declined:
    """What a model did with each training prompt: (n,) each.

    ``was``: it declined. ``counts``: it declined or answered, and did both to prompts of this pool.
    """

    was: NDArray[np.bool_]
    counts: NDArray[np.bool_]

    @classmethod
    def of(cls, outcomes: Sequence[str], pools: NDArray[np.str_]) -> Declined:
        array = np.array(outcomes)
        both = [pool for pool in POOLS if {"refused", "complied"} <= set(array[pools == pool].tolist())]
        return cls(array == "refused", np.isin(array, ("refused", "complied")) & np.isin(pools, both))

    @property
    def num_declined(self) -> int:
        return int((self.was & self.counts).sum())

    @property
    def num_answered(self) -> int:
        return int((~self.was & self.counts).sum())

    def fit_refusal(self, read: Read, seed: int) -> Fit:
        """The refusal direction, within each pool.

        Raises:
            NotMeasuredError: the model declined or answered too few prompts.
        """
        for what, number in (("declined", self.num_declined), ("answered", self.num_answered)):
            if number < MIN_DECLINED:
                raise NotMeasuredError(
                    f"of the training prompts in pools of which it declined some and answered some, it {what} "
                    f"{number}, and {MIN_DECLINED} are needed"
                )
        counted = compared(self.was[self.counts], read.pools[self.counts])
        if sum(p * n / (p + n) for _, p, n in counted) < MIN_COMPARED:
            raise NotMeasuredError("within each pool of training prompts it did nearly the same with all of them")
        allowed = max(1, sum(layer < LOWER_SHARE * read.num_layers for layer in read.layers))
        return fit(self.labelled(read), seed, allowed)

    def labelled(self, read: Read) -> Labelled:
        """The training prompts as declined and answered ones, of which those of one pool are compared."""
        return Labelled.of(read.learned_states, self.was, read.groups, read.pools)[self.counts]


def cosines(
    read: Read,
    harm: Fit,
    first: tuple[Read, Fit] | None,
    declined: tuple[Declined, Fit] | None,
    seed: int,
) -> list[Cosine]:
    """Of the harmfulness direction with that of the first model, and with the refusal direction, all at its layer.

    Args:
        first: None: there is no other model.
        declined: None: there is no refusal direction.
    """
    place, own = harm.best, expected_cosine(read.harmful, harm.best, seed)
    others: dict[Pair, tuple[Fit, float]] = {}
    if first is not None and first[0].layers == read.layers and first[1].vector.shape == harm.vector.shape:
        others["harmfulness before and after training"] = first[1], expected_cosine(first[0].harmful, place, seed)
    if declined is not None:
        others["harmfulness and refusal"] = declined[1], expected_cosine(declined[0].labelled(read), place, seed)
    return [
        Cosine(
            of=pair,
            layer=read.layers[place],
            value=cosine(harm.vector, other.directions.vectors[place]),
            most=float(np.sqrt(own * theirs)),
        )
        for pair, (other, theirs) in others.items()
    ]


def layer_aucs(model: str, read: Read, harm: Fit, confidence: float) -> list[LayerAuc]:
    """For each layer: the held-out harmful requests without an attack against those of each harmless pool."""
    scores = harm.directions.scores(read.asked_states)
    of_pool = {pool: [c.attack == DIRECT and c.prompt.pool == pool for c in read.asked] for pool in POOLS}
    return [
        LayerAuc(
            model=model,
            layer=layer,
            against=pool,
            auc=auc(scores[of_pool["red_team"], place], scores[of_pool[pool], place], confidence),
        )
        for pool in HARMLESS
        if any(of_pool[pool])
        for place, layer in enumerate(read.layers)
    ]


def points(read: Read, harm: Fit, refusal: Fit | None, verdicts: Iterable[Verdict]) -> list[Point]:
    """Each evaluated request in the plane of the two scores."""
    outcomes = {verdict.case.id: verdict.outcome for verdict in verdicts}
    xs = harm.scores(read.asked_states).tolist()
    ys = refusal.scores(read.asked_states).tolist() if refusal else [None] * len(xs)
    return [
        Point(id=case.id, pool=case.prompt.pool, attack=case.attack, x=x, y=y, outcome=outcomes[case.id])
        for case, x, y in zip(read.asked, xs, ys, strict=True)
    ]


def families(found: Sequence[Point], confidence: float) -> list[Family]:
    """The mean position of each pool without an attack, then of each attack."""
    names = dict.fromkeys((point.pool, point.attack) for point in found)
    rows = {name: [point for point in found if (point.pool, point.attack) == name] for name in names}
    return [
        Family(
            pool=pool,
            attack=attack,
            x=_mean([point.x for point in rows[pool, attack]], confidence),
            y=None if None in (ys := [point.y for point in rows[pool, attack]]) else _mean(ys, confidence),
        )
        for pool, attack in sorted(names, key=lambda name: (name[1] != DIRECT, name))
    ]


def _mean(values: Sequence[float | None], confidence: float) -> Estimate:
    return resampled(bootstrap(np.array(values, float), confidence=confidence), len(values))


def seen(found: Sequence[Point], threshold: float, confidence: float) -> list[Seen]:
    """Of the harmful requests that were complied with, and that were refused: how many are above the threshold."""
    rows: list[Seen] = []
    for under, outcome in product(("direct", "attacks"), ("complied", "refused")):
        mine = [
            point.x >= threshold
            for point in found
            if point.pool == "red_team" and (point.attack == DIRECT) is (under == "direct") and point.outcome == outcome
        ]
        count, total = sum(mine), len(mine)
        shares: Mapping[str, Estimate] = {
            "seen": wilson(count, total, confidence),
            "unseen": wilson(total - count, total, confidence),
        }
        rows.append(Seen(under=under, outcome=outcome, **shares))  # type: ignore[arg-type]
    return rows


def false_alarms(found: Sequence[Point], threshold: float, confidence: float) -> Estimate:
    """The share of the look-alikes above the threshold."""
    flagged = [point.x >= threshold for point in found if point.pool == "look_alike" and point.attack == DIRECT]
    return wilson(sum(flagged), len(flagged), confidence)
