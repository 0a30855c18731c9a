"""Calibration and accuracy of a reward model, by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pipeline.evals.calibration import (
    agreement,
    cross_entropies,
    entropies,
    expected_calibration_error,
    held_out_metrics,
    reliability,
    terciles,
)
from pipeline.records import RewardScore

LN3 = math.log(3)  # σ(ln 3) = 3/4


def test_cross_entropy_by_hand_and_its_floor():
    assert cross_entropies([0, LN3, -LN3], [0.2, 1, 1]).tolist() == pytest.approx(
        [math.log(2), -math.log(3 / 4), -math.log(1 / 4)]
    )
    # 0.75 is what the margin predicts: the least that the loss can be, and that is the label's entropy.
    least = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert cross_entropies([LN3], [0.75])[0] == pytest.approx(least) == entropies([0.75])[0]
    assert entropies([0, 1, 0.5]).tolist() == pytest.approx([0, 0, math.log(2)])
    assert np.isfinite(cross_entropies([1000, -1000], [0.3, 0.3])).all()


def test_agreement_counts_ties_of_the_reward_half():
    assert agreement([2, -2, 0, 1], [0.9, 0.9, 0.9, 0.1]).tolist() == [1, 0, 0.5, 0]


def test_reliability_reads_each_pair_from_the_side_that_is_preferred():
    # 3/4 for A with label 0.6; 3/4 for B with label 0.2 for A, so 0.8 for B; one even pair.
    bins = reliability([LN3, -LN3, 0], [0.6, 0.2, 0.4])
    assert [(b.low, b.high, b.count) for b in bins] == [(0.5, 0.6, 1), (pytest.approx(0.7), pytest.approx(0.8), 2)]
    assert bins[1].predicted == pytest.approx(0.75) and bins[1].label == pytest.approx(0.7)
    assert bins[0].predicted == 0.5 and bins[0].label == 0.4
    # (1 · |0.5 − 0.4| + 2 · |0.75 − 0.7|) / 3
    assert expected_calibration_error(bins) == pytest.approx(0.2 / 3)
    # Turning a pair round changes nothing.
    assert reliability([-LN3, LN3], [0.4, 0.8]) == reliability([LN3, -LN3], [0.6, 0.2])
    assert expected_calibration_error([]) is None


def test_a_model_that_means_what_it_says_is_calibrated():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 20000)
    labels = (rng.random(20000) < 1 / (1 + np.exp(-margins))).astype(float)
    assert expected_calibration_error(reliability(margins, labels)) == pytest.approx(0, abs=0.01)
    overconfident = expected_calibration_error(reliability(3 * margins, labels))
    assert overconfident is not None and overconfident > 0.1


def test_terciles():
    assert [third.tolist() for third in terciles([5, 1, 3, 2, 4, 6])] == [[1, 3], [2, 4], [0, 5]]


def score(
    reward_a: float,
    reward_b: float,
    label: float,
    words: tuple[int, int] = (5, 5),
    source: str = "harmlessness",
    pool: str = "red_team",
) -> RewardScore:
    return RewardScore(
        id="x",
        source=source,  # type: ignore[arg-type]
        pool=pool,  # type: ignore[arg-type]
        reward_a=reward_a,
        reward_b=reward_b,
        probability_a=label,
        num_words_a=words[0],
        num_words_b=words[1],
    )


def test_everything_that_is_said_of_held_out_pairs():
    scores = [
        score(1, 0, 0.9, (9, 3)),  # right; the longer reply is preferred
        score(0, 3, 0.8, (2, 4), pool="ordinary"),  # wrong, and sure of it; the shorter one
        score(0, 2, 0.1, (4, 4), "human"),  # right; no longer one
        score(0, 0, 0.5),  # a label that prefers neither counts for the loss alone
    ]
    found = held_out_metrics(scores)
    assert (found["accuracy"]["count"], found["accuracy"]["total"]) == (2, 3)
    assert {name: part["value"] for name, part in found["accuracy_by_source"].items()} == {
        "harmlessness": 0.5,
        "human": 1.0,
    }
    assert {name: part["total"] for name, part in found["accuracy_by_pool"].items()} == {"red_team": 1, "ordinary": 1}
    assert [found["accuracy_by_margin"][third]["value"] for third in ("small", "middle", "large")] == [1, 1, 0]
    assert found["accuracy_by_length"]["longer_preferred"]["value"] == 1
    assert found["accuracy_by_length"]["shorter_preferred"]["value"] == 0
    assert found["accuracy_of_longer_reply"]["value"] == 0.5  # right, wrong, and a tie
    by_hand = cross_entropies([1, -3, -2, 0], [0.9, 0.8, 0.1, 0.5]).mean()
    assert found["loss_held_out"]["value"] == pytest.approx(by_hand)
    assert found["loss_of_one_half"] == pytest.approx(math.log(2))
    assert found["loss_least_possible"] < by_hand
    json.dumps(found, allow_nan=False)


def test_pairs_without_any_side_still_have_a_loss():
    found = held_out_metrics([score(1, 0, 0.5)])
    assert found["accuracy"]["value"] is None and found["loss_held_out"]["value"] == pytest.approx(
        cross_entropies([1], [0.5])[0]
    )
