"""Before training against a reward model: does it know more than the length of a reply, or whether it declines?"""

from __future__ import annotations

from pathlib import Path

from pipeline.core import distributed
from pipeline.core.cache import Manifest
from pipeline.core.errors import StageError
from pipeline.core.log import warn
from pipeline.evals.results import Estimate


def refuse_shortcut(reward: Path, trust: bool) -> None:
    """Refuse a reward model that is no better on held-out labels than a shortcut alone.

    It is better if the whole interval of the paired difference of the accuracies is above zero.

    Args:
        reward: the folder of the reward stage.
        trust: only warn.

    Raises:
        StageError: it is no better, with the numbers.
    """
    manifest = Manifest.read(reward)
    metrics = manifest.metrics if manifest else {}
    for name, found in metrics.get("shortcuts", {}).items():
        gain = Estimate(**found["gain"]) if found["gain"] else Estimate(value=None)
        if gain.low is not None and gain.low > 0:
            continue
        problem = (
            f"the reward model agrees with {_percent(metrics['accuracy'])} of {gain.total} held-out labels, and {name} "
            f"alone with {_percent(found['accuracy'])}{_difference(gain)}"
        )
        if not trust:
            raise StageError(
                f"align: {problem}, so the policy may learn no more than that; label more pairs "
                "(preferences.num_red_team), or set align.trust=true to train against it all the same."
            )
        if distributed.is_main():
            warn(f"align: {problem}; it is trained against all the same, because align.trust is true.")


def _percent(accuracy: dict[str, float | None]) -> str:
    value = accuracy["value"]
    return "no part" if value is None else f"{100 * value:.0f} %"


def _difference(gain: Estimate) -> str:
    if gain.value is None or gain.low is None or gain.high is None:
        return " (too few labels to compare them)"
    return f" (a difference of {100 * gain.value:.0f} points [{100 * gain.low:.0f}, {100 * gain.high:.0f}])"
