"""``over_refusal``: harmless requests that look harmful, and ordinary ones."""

from __future__ import annotations

from typing import ClassVar

from pipeline.evals.scores import Measure, outcome_scores
from pipeline.evals.suites.base import SUITES, RequestsConfig, RequestSuite


@SUITES.add
class OverRefusal(RequestSuite):
    """Harmless requests that look harmful; the ordinary requests of ``helpfulness`` also count."""

    name, pool = "over_refusal", "look_alike"
    counts_too = ("helpfulness",)

    class Config(RequestsConfig):
        """Harmless requests that look harmful; the ordinary requests of ``helpfulness`` also count."""

        shipped = "suites/look_alikes.jsonl"

    measures: ClassVar = {
        "look_alike_refused": Measure(
            title="Harmless look-alikes refused",
            how="share of look-alikes whose outcome is 'refused'",
            better="lower",
            score=outcome_scores("refused", "over_refusal", "look_alike"),
        ),
        "ordinary_refused": Measure(
            title="Ordinary requests refused",
            how="share of ordinary requests whose outcome is 'refused'",
            better="lower",
            score=outcome_scores("refused", "over_refusal", "ordinary"),
        ),
    }
