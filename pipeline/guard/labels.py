"""Which prompts are harmful, as the run's labels say it, and which of two recorded replies declines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from pipeline.evals.judges.refusal import judge_reply
from pipeline.evals.probe import is_harmful
from pipeline.records import Comparison, Preference, Prompt

POOL = "pool"  # also the labeller's name where a run labels by pool
CONSTITUTION = "constitution"


class Sides(NamedTuple):
    """The replies of a comparison: one declines the request, the other one does not."""

    declining: str
    answering: str


@dataclass(frozen=True)
class Labels:
    """Prompt key → what the run's labels say of it."""

    harmful: dict[str, bool]
    sources: dict[str, str]
    """Prompt key → who labelled it."""
    replies: dict[str, Sides]

    @classmethod
    def of(cls, preferences: Iterable[Preference]) -> Labels:
        """A prompt is harmful if the labels prefer the reply that declines it. Comparisons in which both replies
        decline, or neither, say nothing; neither does a label without a preference."""
        found: dict[str, list[float]] = defaultdict(list)
        sources: dict[str, str] = {}
        replies: dict[str, Sides] = {}
        for preference in preferences:
            comparison, key = preference.comparison, preference.comparison.prompt.key
            side = declining_side(comparison)
            if side is None or preference.probability_a is None:
                continue
            a, b = comparison.reply_a, comparison.reply_b
            replies.setdefault(key, Sides(a, b) if side == "a" else Sides(b, a))
            found[key].append(preference.probability_a if side == "a" else 1 - preference.probability_a)
            sources[key] = preference.labeller
        harmful = {key: fmean(shares) > 0.5 for key, shares in found.items() if fmean(shares) != 0.5}
        return cls(harmful, {key: sources[key] for key in harmful}, replies)

    def of_prompt(self, prompt: Prompt) -> tuple[bool, str]:
        """(whether it is harmful, who says so): the run's labels, else the constitution about its own contrasts, else
        the pool under which the prompt was filed."""
        if prompt.key in self.harmful:
            return self.harmful[prompt.key], self.sources[prompt.key]
        return is_harmful(prompt), CONSTITUTION if prompt.kind == "contrast" else POOL


def declining_side(comparison: Comparison) -> str | None:
    """``a`` or ``b``; None if both decline, or neither. An opening is that of a refusal."""
    if comparison.opening:
        return "a"
    request = comparison.prompt.request
    declines = [judge_reply(text, request)[0] == "refused" for text in (comparison.reply_a, comparison.reply_b)]
    return None if declines[0] == declines[1] else "a" if declines[0] else "b"
