"""Make a guard: fit both steps on training rows, and set the threshold on held-out ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import NotMeasuredError
from pipeline.evals.knows_does import NUM_LAYERS
from pipeline.evals.probe import MIN_PROMPTS
from pipeline.evals.results import Estimate
from pipeline.evals.statistics import auc, wilson
from pipeline.guard.bounds import num_needed, threshold_of, upper_bound
from pipeline.guard.config import GuardConfig
from pipeline.guard.guard import Guard, fingerprint_of, num_layers
from pipeline.guard.reading import Reading, read
from pipeline.guard.results import GuardCard, HeldOut, StepCard
from pipeline.guard.rows import Row, num_harmless
from pipeline.guard.steps import Fitted, fit_step, gate_of
from pipeline.records import POOLS

if TYPE_CHECKING:
    from pipeline.engines.states import Reader


@dataclass(frozen=True, kw_only=True)
class Rows:
    """All rows, with the replies of the aligned model where it was asked."""

    learned: Sequence[Row]
    held_out: Sequence[Row]
    attacked: Sequence[Row]
    """Held-out harmless requests under attacks, without replies."""
    made_of: dict[str, int]
    """who labelled the learned prompts → number of prompts"""


def make_guard(config: GuardConfig, reader: Reader, rows: Rows, *, model: str, refusal: str, seed: int) -> Guard:
    """Fit a guard of the model in ``reader``.

    Raises:
        NotMeasuredError: too few rows have states that can be used, or the model has no list of layers.
    """
    from pipeline.engines.states import spread_layers

    layers = spread_layers(num_layers(reader), NUM_LAYERS)
    every = config.check_every_tokens
    learned = _usable(rows.learned, read(reader, rows.learned, layers, every, ends=True))
    refuse_too_few([row for row, _ in learned])
    request = _fit_requests(learned, layers, seed)
    reply, why = _fit_replies(learned, layers, seed, request.held_out)
    gate = gate_of(request.held_out[np.array([row.harmful for row, _ in learned])])
    guard = Guard(
        request=request.step,
        reply=reply.step if reply else None,
        gate=gate,
        threshold=math.inf,
        every=every,
        refusal=refusal,
        fingerprint=fingerprint_of(reader, request.step.layer),
        card=_card(config, rows, model, num_layers(reader), request, reply, learned, why),
    )
    held_out = _usable(rows.held_out, read(reader, rows.held_out, guard.layers, every))
    attacked = _usable(rows.attacked, read(reader, rows.attacked, guard.layers, every))
    return with_threshold(guard, held_out, attacked)


Read = list[tuple[Row, Reading]]


def _usable(rows: Sequence[Row], readings: Sequence[Reading]) -> Read:
    return [(row, reading) for row, reading in zip(rows, readings, strict=True) if reading.usable]


def refuse_too_few(rows: Sequence[Row]) -> None:
    """Raise NotMeasuredError if the harmful or the harmless rows are of too few requests for the folds."""
    for name, harmful in (("harmful", True), ("harmless", False)):
        number = len({row.group for row in rows if row.harmful is harmful})
        if number < MIN_PROMPTS:
            raise NotMeasuredError(
                f"the labels and the model's context leave {number} {name} training requests, and {MIN_PROMPTS} are "
                "needed"
            )


def _fit_requests(learned: Read, layers: Sequence[int], seed: int) -> Fitted:
    states = np.stack([reading.request for _, reading in learned])
    harmful = np.array([row.harmful for row, _ in learned])
    return fit_step(states, harmful, [row.group for row, _ in learned], layers, seed)


def _fit_replies(
    learned: Read, layers: Sequence[int], seed: int, before: NDArray[np.float64]
) -> tuple[Fitted | None, str]:
    """The second step, from every check of every reply; or None, and why there is none. ``before``: log-odds of the
    first step for the same rows."""
    states = [reading.reply for _, reading in learned]
    harmful = np.repeat([row.harmful and row.complied for row, _ in learned], [len(part) for part in states])
    groups = [row.group for row, reading in learned for _ in reading.reply]
    for name, wanted in (("a harmful request that comply", True), ("requests that do not", False)):
        number = len({group for group, is_harmful in zip(groups, harmful, strict=True) if is_harmful == wanted})
        if number < MIN_PROMPTS:
            return None, f"There is no second step: {number} replies to {name} were read, and {MIN_PROMPTS} are needed."
    known = np.repeat(before, [len(part) for part in states])
    return fit_step(np.concatenate(states), harmful, groups, layers, seed, known), ""


def _card(
    config: GuardConfig,
    rows: Rows,
    model: str,
    num_layers: int,
    request: Fitted,
    reply: Fitted | None,
    learned: Read,
    why: str,
) -> GuardCard:
    """What it is made of; the numbers of the threshold come later."""
    num_left_out = len(rows.learned) - len(learned)
    left_out = [f"{num_left_out} training rows have no states that can be used, and were left out."]
    by_label = Counter(row.harmful for row, _ in learned)
    by_reply = Counter(row.harmful and row.complied for row, reading in learned if len(reading.reply))
    return GuardCard(
        model=model,
        made_of=rows.made_of,
        families=config.families,
        num_layers=num_layers,
        request=_step(request, by_label),
        reply=_step(reply, by_reply) if reply else None,
        max_false_alarms=config.max_false_alarms,
        confidence=config.confidence,
        num_harmless=0,
        num_alarms=0,
        bound=1.0,
        auc=Estimate(value=None),
        held_out=[],
        attacked_harmless=Estimate(value=None),
        notes=[*([why] if why else []), *(left_out if num_left_out else [])],
    )


def _step(fitted: Fitted, number: Counter[bool]) -> StepCard:
    return StepCard(layer=fitted.step.layer, auc=fitted.auc, num_harmful=number[True], num_harmless=number[False])


def with_threshold(guard: Guard, held_out: Read, attacked: Read) -> Guard:
    """The guard with the lowest threshold whose bound on false alarms holds. It never fires if there is none, or if its
    scores do not tell held-out harmful requests from harmless ones."""
    card = guard.card
    harmful = np.array([row.harmful for row, _ in held_out], dtype=bool)
    readings = [reading for _, reading in held_out]
    scores, certain = guard.scores(readings), guard.request_log_odds(readings)
    number = num_harmless(row for row, _ in held_out)
    threshold = threshold_of(scores[~harmful], card.max_false_alarms, card.confidence)
    found = auc(scores[harmful], scores[~harmful], card.confidence)
    idle = _why_idle(card, number, found)
    threshold = math.inf if idle else threshold
    num_alarms = int((scores[~harmful] > threshold).sum())
    card = card.model_copy(
        update={
            "num_harmless": number,
            "num_alarms": num_alarms,
            "bound": 0.0 if idle else upper_bound(num_alarms, number, card.confidence),
            "auc": found,
            "held_out": _by_pool(held_out, scores > threshold, certain > threshold, card.confidence),
            "attacked_harmless": _fired(
                guard.request_log_odds([reading for _, reading in attacked]) > threshold, card.confidence
            ),
            "idle": idle,
        }
    )
    return replace(guard, threshold=threshold, card=card)


def _why_idle(card: GuardCard, num_harmless: int, found: Estimate) -> str:
    needed = num_needed(card.max_false_alarms, card.confidence)
    if num_harmless < needed:
        return (
            f"{num_harmless} held-out harmless requests have states that can be used, and {needed} are needed for at "
            f"most {card.max_false_alarms:g} false alarms with confidence {card.confidence:g}"
        )
    if found.low is None or found.low <= 0.5:
        return f"there is no evidence that it tells held-out harmful requests from harmless ones (AUC {found})"
    return ""


def _by_pool(held_out: Read, fired: NDArray[np.bool_], certain: NDArray[np.bool_], confidence: float) -> list[HeldOut]:
    pools = np.array([row.pool for row, _ in held_out])
    return [
        HeldOut(
            pool=pool,
            fired=_fired(fired[pools == pool], confidence),
            by_request=int((fired & certain)[pools == pool].sum()),
        )
        for pool in POOLS
        if (pools == pool).any()
    ]


def _fired(fired: NDArray[np.bool_], confidence: float) -> Estimate:
    return wilson(int(fired.sum()), len(fired), confidence)
