"""Rates by the manner in which a request is worded, such as terse or polite."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from pipeline.evals.measures import all_measures
from pipeline.evals.results import MannerRate
from pipeline.evals.scores import estimated
from pipeline.records import Prompt, Verdict

MEASURES = ("harmful_complied", "look_alike_refused", "ordinary_refused")


def manners_held_out(prompts: Iterable[Prompt]) -> set[str]:
    """The manners whose prompts are all in the test split, so that nothing was trained or chosen on them."""
    prompts = list(prompts)
    return {prompt.manner for prompt in prompts} - {p.manner for p in prompts if p.split != "test"} - {""}


def manner_rates(
    verdicts: Mapping[str, Sequence[Verdict]], held_out: Collection[str], confidence: float
) -> list[MannerRate]:
    """``MEASURES`` for each model and manner. Requests without a manner are left out.

    Args:
        verdicts: by model.
        held_out: the manners that nothing was trained on.
    """
    rates = []
    for model, mine in verdicts.items():
        manner_of = {verdict.case.id: verdict.case.prompt.manner for verdict in mine}
        for name in MEASURES:
            measure = all_measures()[name]
            assert measure.score is not None
            scores = measure.score(mine)
            for manner in sorted({manner_of[case_id] for case_id in scores} - {""}):
                here = {case_id: score for case_id, score in scores.items() if manner_of[case_id] == manner}
                rate = estimated(here, measure.unit, confidence)
                rates.append(
                    MannerRate(model=model, measure=name, manner=manner, held_out=manner in held_out, rate=rate)
                )
    return rates
