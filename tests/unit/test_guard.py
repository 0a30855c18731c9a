"""Thresholds with a bound that holds, and steps fitted on planted states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.core.errors import NotMeasuredError
from pipeline.guard import making
from pipeline.guard.bounds import allowed_alarms, num_needed, threshold_of, upper_bound
from pipeline.guard.config import GuardConfig
from pipeline.guard.guard import Guard
from pipeline.guard.making import Rows, make_guard, with_threshold
from pipeline.guard.reading import Reading, checks
from pipeline.guard.rows import Row
from pipeline.guard.steps import alarm_scores, fit_step, gate_of
from pipeline.records import Message

# --- The bound ------------------------------------------------------------------------------------------------------


def by_hand(k: int, n: int, rate: float) -> float:
    """P(Binomial(n, rate) ≤ k)."""
    return sum(comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(k + 1))


@pytest.mark.parametrize(
    ("n", "rate", "confidence"), [(59, 0.05, 0.95), (143, 0.05, 0.95), (60, 0.2, 0.9), (8, 0.5, 0.6)]
)
def test_the_allowed_alarms_are_the_most_that_pass_the_exact_test(n: int, rate: float, confidence: float):
    k = allowed_alarms(n, rate, confidence)
    assert k is not None and by_hand(k, n, rate) <= 1 - confidence < by_hand(k + 1, n, rate)
    assert upper_bound(k, n, confidence) <= rate < upper_bound(k + 1, n, confidence)
    assert by_hand(k, n, upper_bound(k, n, confidence)) == pytest.approx(1 - confidence)


def test_too_few_requests_give_no_threshold():
    assert num_needed(0.05, 0.95) == 59
    assert allowed_alarms(58, 0.05, 0.95) is None and allowed_alarms(59, 0.05, 0.95) == 0
    assert threshold_of(np.arange(58.0), 0.05, 0.95) == math.inf
    assert upper_bound(7, 7, 0.9) == 1.0


def test_the_bound_holds_in_repeated_draws_of_overlapping_scores():
    """Of 2000 thresholds, each set on 100 harmless scores, those that let through more than 10 % of all harmless
    requests are at most the promised 10 %, and not far from it: the bound is not idle either."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    thresholds = [threshold_of(rng.normal(size=100), 0.1, 0.9) for _ in range(2000)]
    too_many = float(np.mean(norm.sf(thresholds) > 0.1))
    exact = by_hand(allowed_alarms(100, 0.1, 0.9) or 0, 100, 0.1)
    assert too_many <= 0.1 + 3 * math.sqrt(0.09 / 2000) and too_many == pytest.approx(exact, abs=0.02)


def test_scores_that_are_equal_give_fewer_alarms_and_never_more():
    scores = np.array([1.0] * 50 + [0.0] * 50)
    assert (scores > threshold_of(scores, 0.1, 0.9)).sum() == 0


# --- A guard on planted states -------------------------------------------------------------------------------------


def planted(
    num: int, separation: float, seed: int, replies: bool = True, hidden: int = 8
) -> tuple[list[Row], list[Reading]]:
    """As many harmful requests that the model complies with as harmless ones. The second of three layers tells them
    apart; the third one does so after the reply has begun."""
    rng = np.random.default_rng(seed)
    rows, readings = [], []
    for number in range(2 * num):
        harmful, pool = number % 2 == 0, ("red_team", "look_alike")[number % 2]
        turns = [Message(role="user", content=f"request {seed} {number}")]
        rows.append(
            Row(id=f"{seed}-{number}", messages=turns, request="r", harmful=harmful, group=f"{seed}-{number}",
                pool=pool, reply="some reply", complied=harmful)  # type: ignore[arg-type]
        )  # fmt: skip
        states = rng.normal(size=(4, 3, hidden)).astype(np.float32)
        states[0, 1, 0] += separation * harmful
        states[1:, 2, 0] += separation * harmful
        readings.append(Reading(states[0], states[1:] if replies else states[1:1]))
    return rows, readings


def make(
    monkeypatch: pytest.MonkeyPatch, learned: float, held_out: float, num_held_out: int = 100, seed: int = 1
) -> Guard:
    """A guard from planted states that are so far apart."""
    parts = [planted(60, learned, seed), planted(num_held_out, held_out, seed + 1000)]
    known = {row.id: reading for rows, readings in parts for row, reading in zip(rows, readings, strict=True)}

    def read(
        reader: object, rows: Sequence[Row], layers: Sequence[int], every: int, ends: bool = False
    ) -> list[Reading]:
        wanted = [layer - 1 for layer in layers]
        return [Reading(known[row.id].request[wanted], known[row.id].reply[:, wanted]) for row in rows]

    monkeypatch.setattr(making, "read", read)
    monkeypatch.setattr(making, "num_layers", lambda reader: 3)
    monkeypatch.setattr(making, "fingerprint_of", lambda reader, layer: np.ones(8, dtype=np.float32))
    rows = Rows(learned=parts[0][0], held_out=parts[1][0], attacked=[], made_of={"pool": 120})
    return make_guard(GuardConfig(), None, rows, model="m", refusal="No.", seed=0)  # type: ignore[arg-type]


def of_layers(guard: Guard, states: tuple[list[Row], list[Reading]]) -> list[tuple[Row, Reading]]:
    """Rows with the states of the layers that the guard reads."""
    wanted = [layer - 1 for layer in guard.layers]
    return [(row, Reading(one.request[wanted], one.reply[:, wanted])) for row, one in zip(*states, strict=True)]


def fired(guard: Guard, rows: list[Row], readings: list[Reading]) -> tuple[float, float]:
    """The share of harmful and of harmless requests on which it fires."""
    scores = guard.scores([reading for _, reading in of_layers(guard, (rows, readings))])
    harmful = np.array([row.harmful for row in rows])
    return float((scores[harmful] > guard.threshold).mean()), float((scores[~harmful] > guard.threshold).mean())


def test_a_guard_on_separable_states_reaches_its_budget_exactly_and_finds_all(monkeypatch: pytest.MonkeyPatch):
    guard = make(monkeypatch, learned=12.0, held_out=12.0)
    assert guard.card.num_harmless == 100 and guard.card.idle == ""
    assert guard.card.num_alarms == allowed_alarms(100, 0.05, 0.95) == 1
    assert guard.card.bound == pytest.approx(upper_bound(1, 100, 0.95)) and guard.card.bound <= 0.05
    assert guard.request.layer == 2 and guard.reply is not None and guard.reply.layer == 3
    found, false_alarms = fired(guard, *planted(200, 12.0, seed=5))
    assert found == 1 and false_alarms <= 0.05
    harmful, look_alike = guard.card.held_out
    assert (harmful.pool, harmful.fired.count, look_alike.fired.count) == ("red_team", 100, 1)


def test_both_steps_together_keep_the_budget_in_repeated_draws(monkeypatch: pytest.MonkeyPatch):
    """States overlap, and each of 300 thresholds is set on a draw of 100 harmless requests. At most one in twenty may
    let more than 5 % of all harmless requests through; three checks of a reply count together with the request."""
    guard = make(monkeypatch, 1.5, 1.5)
    everyone = of_layers(guard, planted(4000, 1.5, seed=5000))
    harmless = guard.scores([reading for row, reading in everyone if not row.harmful])
    draws = (with_threshold(guard, of_layers(guard, planted(100, 1.5, seed)), []) for seed in range(300))
    rates = np.array([(harmless > one.threshold).mean() for one in draws])
    expected = by_hand(1, 100, 0.05)  # 0.037: the next allowed number would be above one in twenty
    assert (rates > 0.05).mean() <= expected + 3 * math.sqrt(expected / 300) and 0.005 < rates.mean() < 0.05
    only_requests = guard.request_log_odds([reading for row, reading in everyone if not row.harmful])
    assert (harmless > only_requests).mean() > 0.05  # the second step does raise scores of harmless requests


@pytest.mark.parametrize(("learned", "held_out"), [(0.0, 0.0), (12.0, 0.0)], ids=["random labels", "nothing held out"])
def test_a_guard_that_knows_nothing_says_so_and_never_fires(
    learned: float, held_out: float, monkeypatch: pytest.MonkeyPatch
):
    guard = make(monkeypatch, learned, held_out)
    assert "no evidence that it tells held-out harmful requests from harmless ones" in guard.card.idle
    assert guard.threshold == math.inf and fired(guard, *planted(100, 12.0, seed=7)) == (0, 0)
    assert guard.card.num_alarms == 0 and all(one.fired.count == 0 for one in guard.card.held_out)


def test_too_few_held_out_requests_name_the_number_that_is_needed(monkeypatch: pytest.MonkeyPatch):
    guard = make(monkeypatch, 12.0, 12.0, num_held_out=58)
    assert guard.threshold == math.inf and "58 held-out harmless requests" in guard.card.idle
    assert "59 are needed for at most 0.05 false alarms with confidence 0.95" in guard.card.idle


def test_too_few_training_requests_are_refused():
    rows, _ = planted(19, 1.0, 0)
    with pytest.raises(NotMeasuredError, match="leave 19 harmful training requests, and 20 are needed"):
        making.refuse_too_few(rows)


# --- The steps --------------------------------------------------------------------------------------------------------


def test_a_step_is_its_classifier_in_log_odds():
    """The folded weights give what scikit-learn's pipeline gives, and a step that knows half has calibrated odds."""
    from pipeline.evals.probe import classifier_of_states

    rows, readings = planted(300, 1.0, 3)
    states = np.stack([reading.request for reading in readings])
    harmful = np.array([row.harmful for row in rows])
    fitted = fit_step(states, harmful, [row.group for row in rows], [4, 8, 12], seed=0)
    assert fitted.step.layer == 8 and 0.6 < fitted.auc < 0.9
    plain = classifier_of_states().fit(states[:, 1], harmful).decision_function(states[:, 1])
    found = fitted.step.log_odds(states[:, 1])
    assert np.corrcoef(plain, found)[0, 1] == pytest.approx(1, abs=1e-5)
    chances = 1 / (1 + np.exp(-fitted.held_out))
    assert chances.mean() == pytest.approx(0.5, abs=0.01)
    likely = chances > 0.6
    assert harmful[likely].mean() == pytest.approx(chances[likely].mean(), abs=0.1)


def test_the_second_step_carries_what_the_first_one_knows():
    """The states of these replies tell nothing, and the log-odds of the first step are right: they are kept."""
    rows, _ = planted(300, 1.0, 3)
    harmful = np.array([row.harmful for row in rows])
    blind = np.random.default_rng(9).normal(size=(600, 1, 8)).astype(np.float32)
    before = np.where(harmful, 1.5, -1.5) + np.random.default_rng(8).normal(size=600)
    fitted = fit_step(blind, harmful, [row.group for row in rows], [4], seed=0, before=before)
    alone = fit_step(blind, harmful, [row.group for row in rows], [4], seed=0)
    assert fitted.step.carried > 1 and alone.step.carried == 0 and fitted.auc > 0.95 > 0.6 > alone.auc
    states = blind[:, 0]
    difference = fitted.step.log_odds(states, before) - fitted.step.log_odds(states)
    np.testing.assert_allclose(difference, fitted.step.carried * before)


def test_a_reply_counts_only_where_the_first_step_opens_the_gate():
    requests = np.array([0.0, 0.0, 2.0, 2.0, 0.9])
    replies: list[NDArray[np.float64]] = [
        np.array([5.0]),
        np.zeros(0),
        np.array([1.0, 3.0]),
        np.zeros(0),
        np.array([7.0]),
    ]
    assert alarm_scores(requests, replies, gate=1.0).tolist() == [0, 0, 3, 2, 0.9]


def test_the_gate_lets_95_percent_of_harmful_requests_through():
    assert (np.arange(100.0) > gate_of(np.arange(100.0))).mean() == 0.95


def test_lengths_at_which_a_reply_is_read():
    assert checks(20, 8) == [8, 16] and checks(16, 8) == [8] and checks(0, 8, ends=True) == []
    assert checks(20, 8, ends=True) == [8, 16, 20]
