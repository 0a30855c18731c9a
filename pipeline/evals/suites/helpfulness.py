"""``helpfulness``: ordinary requests, some with reference answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.core.text import words
from pipeline.evals.results import Estimate
from pipeline.evals.scores import Measure, Scores, estimated
from pipeline.evals.statistics import bootstrap, resampled
from pipeline.evals.suites.base import REQUEST_SHAPES, SAFETY_SETS, SUITES, RequestsConfig, RequestSuite
from pipeline.evals.text import has_filler, lix
from pipeline.records import Prompt, Verdict


def _surprise(verdicts: Sequence[Verdict]) -> Scores:
    return {v.case.id: -v.reference_logprob for v in verdicts if v.reference_logprob is not None}


def _perplexity_ratio(first: Sequence[Verdict], mine: Sequence[Verdict], confidence: float) -> Estimate | None:
    before, after = _surprise(first), _surprise(mine)
    differences = {case: after[case] - before[case] for case in before if case in after}
    return estimated(differences, "perplexity", confidence) if differences and mine is not first else None


def _answered(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if v.replied and Helpfulness.name in v.case.suites]


def _length_ratio(first: Sequence[Verdict], mine: Sequence[Verdict], confidence: float) -> Estimate | None:
    lengths = [{v.case.id: len(words(v.reply)) for v in _answered(verdicts)} for verdicts in (first, mine)]
    common = sorted(lengths[0].keys() & lengths[1].keys())
    before, after = ([length[case] for case in common] for length in lengths)
    if mine is first or not any(before):
        return None

    def ratio(before: NDArray, after: NDArray) -> NDArray:
        return after.sum(-1) / np.maximum(before.sum(-1), 1)

    return resampled(bootstrap(before, after, statistic=ratio, confidence=confidence), len(common))


@SUITES.add
class Helpfulness(RequestSuite):
    """Ordinary requests, some with reference answers."""

    name, pool = "helpfulness", "ordinary"
    compares = True

    class Config(RequestsConfig):
        """Ordinary requests, some with reference answers."""

        shapes = tuple(name for name in REQUEST_SHAPES if name not in SAFETY_SETS)
        shipped = "suites/references.jsonl"

    measures: ClassVar = {
        "preferred": Measure(
            title="Ordinary requests: preferred to the first model's reply",
            how="mean verdict of the pair judge; ties count half, and 0.5 means equally good",
            better="higher",
            unit="share",
            score=lambda verdicts: {v.case.id: v.preferred for v in verdicts if v.preferred is not None},
        ),
        "reference_perplexity": Measure(
            title="Perplexity on reference answers",
            how="exp of the mean negative log-probability per token; every answer has the same weight",
            better="lower",
            unit="perplexity",
            score=_surprise,
        ),
        "perplexity_ratio": Measure(
            title="Perplexity on reference answers, ratio to the first model",
            how="geometric mean of the ratio for each answer; 1 means unchanged",
            better="lower",
            unit="mean",
            estimate=_perplexity_ratio,
        ),
        "length_ratio": Measure(
            title="Length of replies to ordinary requests, ratio to the first model",
            how="words of all replies divided by words of the first model's replies to the same requests, up to "
            "evaluate.max_reply_tokens",
            better=None,
            unit="mean",
            estimate=_length_ratio,
        ),
        "filler": Measure(
            title="Ordinary requests answered with filler",
            how="share of replies, up to evaluate.max_reply_tokens, with an English phrase that says nothing, such as "
            "“great question” or “feel free to”",
            better=None,
            score=lambda verdicts: {v.case.id: float(has_filler(v.reply)) for v in _answered(verdicts)},
        ),
        "lix": Measure(
            title="Hard words and long sentences (LIX) in replies to ordinary requests",
            how="mean of words per sentence + 100 × share of words longer than six characters, up to "
            "evaluate.max_reply_tokens; 25 is easy, 55 hard",
            better=None,
            unit="mean",
            score=lambda verdicts: {v.case.id: lix(v.reply) for v in _answered(verdicts)},
        ),
    }

    def requests(self, held_out: Sequence[Prompt], notes: list[str]) -> list[tuple[Prompt, str | None]]:
        """Requests with a reference answer come first, so that a small ``num_requests`` still measures perplexity."""
        return sorted(super().requests(held_out, notes), key=lambda row: row[1] is None)
