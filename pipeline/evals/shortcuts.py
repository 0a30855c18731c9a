"""A reward model beside shortcuts: one number about a reply, such as its length, that needs no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.text import sentences, words
from pipeline.evals.calibration import agreement
from pipeline.evals.judges.refusal import judge_reply
from pipeline.evals.statistics import paired_difference, resampled, share_of_right
from pipeline.records import Preference


def opens_with_refusal(reply: str) -> bool:
    """Whether the first sentence declines, by the judge ``patterns``."""
    first = sentences(reply)[:1]
    return bool(first) and judge_reply(first[0])[0] == "refused"


REFUSAL = "refusal at the start"
SHORTCUTS: dict[str, Callable[[str], float]] = {
    "length": lambda reply: float(len(words(reply))),
    REFUSAL: lambda reply: float(opens_with_refusal(reply)),
}


def shortcut_metrics(
    training: Sequence[Preference],
    held_out: Sequence[Preference],
    margins: Mapping[str, float],
    confidence: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Shortcut → ``accuracy`` on the held-out labels, and ``gain``: the reward model's accuracy minus it, paired.

    Each shortcut prefers the reply with more of it, or with less, whichever agrees with more of the training labels.
    Labels of ½ do not count.

    Args:
        margins: id of a held-out comparison → reward of reply A minus that of reply B.
    """
    decided = [preference for preference in held_out if preference.probability_a != 0.5]
    labels = _labels(decided)
    right = agreement([margins[preference.comparison.id] for preference in decided], labels)
    found = {}
    for name in SHORTCUTS:
        agreed = agreement(_margins(training, name), _labels(training)) if training else np.array([])
        sign = 1 if agreed.sum() >= len(agreed) / 2 else -1
        mine = agreement(sign * _margins(decided, name), labels)
        gain = resampled(paired_difference(mine, right, confidence), len(mine)) if decided else None
        found[name] = {
            "accuracy": share_of_right(mine.tolist(), confidence).model_dump(),
            "gain": gain and gain.model_dump(),
        }
    return found


def _margins(preferences: Sequence[Preference], name: str) -> NDArray:
    values = [[_value(name, reply, p.comparison.opening) for reply in _replies(p)] for p in preferences]
    return np.array([a - b for a, b in values], float)


def _replies(preference: Preference) -> tuple[str, str]:
    return preference.comparison.reply_a, preference.comparison.reply_b


def _value(name: str, reply: str, opening: str) -> float:
    """``opening``: how refusals begin, where replies are beginnings, too short for the judge."""
    return float(reply.startswith(opening)) if name == REFUSAL and opening else SHORTCUTS[name](reply)


def _labels(preferences: Sequence[Preference]) -> NDArray:
    return np.array([p.probability_a for p in preferences], float)
