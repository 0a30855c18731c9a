"""Thresholds with a bound that holds, steps fitted on planted states, and labels of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.chain.compose import compose_config
from pipeline.constitution.files import load_constitution, shipped_constitutions
from pipeline.core.errors import ConfigError, NotMeasuredError
from pipeline.core.settings import validated
from pipeline.evals.results import DIRECT
from pipeline.evals.suites.attacks import ATTACKS
from pipeline.guard import making
from pipeline.guard.bounds import allowed_alarms, num_needed, threshold_of, upper_bound
from pipeline.guard.config import GuardConfig
from pipeline.guard.families import FAMILIES, LEARNED, attacks_of, family_of
from pipeline.guard.guard import Guard
from pipeline.guard.labels import Labels
from pipeline.guard.making import Rows, make_guard
from pipeline.guard.reading import Reading, checks
from pipeline.guard.refusals import refusal_of
from pipeline.guard.rows import Row, answered_anew, held_out_rows, learned_prompts, learned_rows
from pipeline.guard.steps import alarm_scores, fit_step, gate_of
from pipeline.records import Comparison, Message, Pool, Preference, Prompt
from pipeline.stages.guard import Guard as GuardStage

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


def fired(guard: Guard, rows: Sequence[Row], readings: Sequence[Reading]) -> tuple[float, float]:
    """The share of harmful and of harmless requests on which it fires."""
    wanted = [layer - 1 for layer in guard.layers]
    scores = guard.scores([Reading(r.request[wanted], r.reply[:, wanted]) for r in readings])
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


def test_both_steps_together_keep_the_budget_where_states_overlap(monkeypatch: pytest.MonkeyPatch):
    """Over 24 guards, each with a threshold of its own, about one in twenty may let more than 5 % through; three
    checks of a reply count together with the request."""
    rates = []
    for seed in range(1, 25):
        guard = make(monkeypatch, 1.5, 1.5, seed=seed)
        assert guard.card.idle == ""
        rates.append(fired(guard, *planted(1000, 1.5, seed=seed + 5000))[1])
    assert sum(rate > 0.05 for rate in rates) <= 4 and 0 < np.mean(rates) < 0.05


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
    assert fitted.step.layer == 8 and len(fitted.aucs) == 3
    plain = classifier_of_states().fit(states[:, 1], harmful).decision_function(states[:, 1])
    found = fitted.step.log_odds(states[:, 1])
    assert np.corrcoef(plain, found)[0, 1] == pytest.approx(1, abs=1e-5)
    chances = 1 / (1 + np.exp(-fitted.held_out))
    assert chances.mean() == pytest.approx(0.5, abs=0.01)
    likely = chances > 0.6
    assert harmful[likely].mean() == pytest.approx(chances[likely].mean(), abs=0.1)


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


# --- What it learns from ----------------------------------------------------------------------------------------------


def prompt(name: str, pool: Pool, split: str = "train", twin_of: str = "") -> Prompt:
    turns = [Message(role="user", content=f"{name}?")]
    return Prompt(id=name, pool=pool, kind="k", twin_of=twin_of, split=split, messages=turns)  # type: ignore[arg-type]


def preference(
    asked: Prompt, a: str, b: str, probability: float | None, who: str = "ai", opening: str = ""
) -> Preference:
    comparison = Comparison(id=asked.id, prompt=asked, reply_a=a, reply_b=b, seed_a=0, seed_b=0, opening=opening)
    return Preference(comparison=comparison, judgements=[], probability_a=probability, labeller=who, template="t")


NO, YES = "I won't help with that. It would hurt people.", "First, take the lid off and turn it over slowly."


def test_a_prompt_is_harmful_if_the_run_prefers_the_reply_that_declines():
    prompts = {name: prompt(name, "ordinary") for name in "abcdef"}
    labels = Labels.of(
        [
            preference(prompts["a"], NO, YES, 0.9),
            preference(prompts["b"], YES, NO, 0.9),
            preference(prompts["c"], YES, YES + " More.", 0.9),  # none declines
            preference(prompts["d"], NO, YES, None),  # no label
            preference(prompts["e"], "I won't", YES, 1.0, who="pool", opening="I won't"),
            preference(prompts["f"], NO, YES, 0.5),
        ]
    )
    found = {name: labels.of_prompt(one) for name, one in prompts.items()}
    assert found["a"] == (True, "ai") and found["b"] == (False, "ai") and found["e"] == (True, "pool")
    assert all(found[name] == (False, "pool") for name in "cdf")  # the pool under which it was filed
    assert labels.replies[prompts["b"].key] == (NO, YES)


def test_each_prompt_is_learned_as_it_is_and_under_one_attack_of_the_learned_families():
    prompts = [prompt(f"h{i}", "red_team") for i in range(8)] + [prompt(f"o{i}", "ordinary") for i in range(4)]
    labels = Labels.of([preference(one, NO, YES, float(one.pool == "red_team")) for one in prompts])
    rows = learned_rows(prompts, labels, ["roles", "turns"], seed=0)
    assert len(rows) == 24 and {row.attack for row in rows} == {DIRECT, *attacks_of(["roles", "turns"])}
    assert {row.group for row in rows if row.id.startswith("train/h0/")} == {"h0"}
    harmful, harmless = ([row for row in rows if row.harmful is side] for side in (True, False))
    assert {row.complied for row in harmful} == {True, False}
    assert all(row.reply == (YES if row.complied else NO) for row in rows)
    assert all(row.complied for row in harmless)  # an answer, which is right there


def test_no_evaluated_or_held_out_prompt_is_learned_and_twins_are_held_out_once():
    constitution = load_constitution(shipped_constitutions()["default"])
    prompts = [
        prompt("h", "red_team", "validation"),
        prompt("t1", "look_alike", "validation", twin_of="h"),
        prompt("t2", "look_alike", "validation", twin_of="h"),
        prompt("o", "ordinary", "validation"),
        prompt("x", "ordinary", "test"),
        prompt("y", "ordinary"),
    ]
    learned = learned_prompts(prompts, constitution, 25, seed=0)
    assert all(one.kind == "contrast" or one.id == "y" for one in learned)
    assert sum(one.pool == "red_team" for one in learned) == 25 == sum(one.pool == "look_alike" for one in learned)
    held_out = held_out_rows(prompts)
    assert sorted((row.harmful, row.group) for row in held_out) == [(False, "h"), (False, "o"), (True, "h")]


def test_half_of_the_answered_rows_are_harmful_where_there_are_so_many():
    rows, _ = planted(30, 1.0, 0)
    chosen = answered_anew(rows, 11, seed=0)
    assert len({row.id for row in chosen}) == 11 and sum(row.harmful for row in chosen) == 6
    assert len(answered_anew(rows[:2], 11, seed=0)) == 2 and answered_anew(rows, 0, seed=0) == []


def test_every_attack_is_in_one_family_and_half_of_the_families_are_learned():
    named = [attack for attacks in FAMILIES.values() for attack in attacks]
    assert sorted(named) == sorted(set(ATTACKS) - {DIRECT})
    assert len(LEARNED) == len(FAMILIES) // 2 and set(LEARNED) < set(FAMILIES)
    assert family_of("new_one") == "new_one"  # an attack that is added is not taken for one that was learned


def test_bad_settings_are_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"guard.families is 'role', which is not one of .*did you mean 'roles'"):
        validated(GuardConfig, {"families": ["role"]}, "guard")
    with pytest.raises(ConfigError, match=r"guard.max_false_alarms is 0; it must be above 0 and below 1"):
        validated(GuardConfig, {"max_false_alarms": 0}, "guard")


def test_the_refusal_is_in_the_words_of_the_constitution():
    default = load_constitution(shipped_constitutions()["default"])
    assert refusal_of(GuardConfig(), default) == f"{default.opening()} help with that."
    assert refusal_of(GuardConfig(refusal="No."), default) == "No."
    declared = GuardStage().reads(compose_config(["guard.enabled=true"]), default)["constitution"]
    assert refusal_of(GuardConfig(), declared) == refusal_of(GuardConfig(), default)  # the stage reads no more
    assert learned_prompts([], declared, 20, 0) == learned_prompts([], default, 20, 0)
    others = [c.model_copy(update={"revision": f"{i} no"}) for i, c in enumerate(default.contrasts[:3])]
    mixed = default.model_copy(update={"contrasts": others, "worked_examples": []})
    assert refusal_of(GuardConfig(), mixed) == "0 no"
