"""What a model declines when a direction is taken out of what its layers compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from pipeline.core.log import say
from pipeline.evals.judges.refusal import judge_reply
from pipeline.evals.results import DIRECT, Estimate
from pipeline.evals.statistics import paired_rates, wilson
from pipeline.explain.directions_fit import Floats
from pipeline.explain.directions_found import Ablation, Removed
from pipeline.records import Case, Outcome, Pool, derive_seed

if TYPE_CHECKING:
    from pipeline.engines.states import Reader

ABLATED: tuple[Pool, ...] = ("red_team", "ordinary")


def asked_again(cases: Sequence[Case], num: int, seed: int) -> list[Case]:
    """At most ``num`` harmful and as many ordinary requests without an attack, chosen by hash."""
    return [
        case
        for pool in ABLATED
        for case in sorted(
            (case for case in cases if case.prompt.pool == pool and case.attack == DIRECT),
            key=lambda case: derive_seed(seed, "ablated", case.id),
        )[:num]
    ]


def ablation(
    reader: Reader, cases: Sequence[Case], direction: Floats, max_tokens: int, seed: int, confidence: float
) -> list[Ablation]:
    """Greedy replies with nothing removed, without the direction, and without a random one.

    Args:
        cases: of ``asked_again``.
        direction: (hidden,). The random one has the same length; only its angle matters to a projection.

    Raises:
        NotMeasuredError: the model can't reply here.
    """
    random = np.random.default_rng(seed % 2**32).normal(size=direction.shape)
    random *= np.linalg.norm(direction) / np.linalg.norm(random)
    removed: dict[Removed, Floats | None] = {
        "nothing": None,
        "refusal direction": direction,
        "random direction": random,
    }
    outcomes: dict[Removed, list[str]] = {}
    for name, vector in removed.items():
        say(f"explain: {len(cases)} replies, {name} removed")
        outcomes[name] = _outcomes(reader, cases, vector, max_tokens)
    return [
        row
        for pool in ABLATED
        if (places := [n for n, case in enumerate(cases) if case.prompt.pool == pool])
        for row in _rows(pool, {name: [mine[n] for n in places] for name, mine in outcomes.items()}, confidence)
    ]


def _outcomes(reader: Reader, cases: Sequence[Case], vector: Floats | None, max_tokens: int) -> list[str]:
    import torch

    from pipeline.engines.ablation import without_direction

    inside: AbstractContextManager[None] = (
        nullcontext() if vector is None else without_direction(reader.model, torch.from_numpy(vector))
    )
    with inside:
        replies = reader.replies([case.messages for case in cases], max_tokens)
    return [judge_reply(reply, case.prompt.request)[0] for reply, case in zip(replies, cases, strict=True)]


def _rows(pool: Pool, outcomes: Mapping[Removed, Sequence[str]], confidence: float) -> list[Ablation]:
    before, random = outcomes["nothing"], outcomes["random direction"]
    return [
        Ablation(
            pool=pool,
            removed=name,
            refused=wilson(mine.count("refused"), len(mine), confidence),
            broken=wilson(mine.count("broken"), len(mine), confidence),
            difference=None if name == "nothing" else _difference(before, mine, "refused", confidence),
            more_answered=_difference(random, mine, "complied", confidence) if name == "refusal direction" else None,
        )
        for name, mine in outcomes.items()
    ]


def _difference(before: Sequence[str], after: Sequence[str], outcome: Outcome, confidence: float) -> Estimate:
    """Share of an outcome after minus that before, over the same requests."""
    pairs = [(a == outcome, b == outcome) for a, b in zip(before, after, strict=True)]
    gained, lost = sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
    value, low, high = paired_rates(gained, lost, len(pairs), confidence)
    return Estimate(value=value, low=low, high=high, total=len(pairs))
