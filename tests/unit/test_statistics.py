"""Intervals and tests against hand-worked values, brute force, scipy and statsmodels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from pipeline.evals.statistics import (
    NUM_RESAMPLES,
    SEED,
    benjamini_hochberg,
    bootstrap,
    bradley_terry,
    holm,
    mcnemar,
    newcombe,
    paired_difference,
    paired_rates,
    share,
    sign_flip_test,
    spread_test,
    wilson,
)


@pytest.mark.parametrize(("count", "total"), [(0, 20), (7, 20), (20, 20), (1, 3)])
def test_wilson_is_the_formula(count: int, total: int):
    """Wilson 1927: centre and half-width by hand."""
    z, p = norm.ppf(0.975), count / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (p * (1 - p) / total + z * z / (4 * total * total)) ** 0.5
    rate = wilson(count, total)
    assert (rate.low, rate.high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)
    assert (rate.low, rate.high) == pytest.approx(proportion_confint(count, total, 0.05, "wilson"), abs=1e-9)


@pytest.mark.parametrize(("a", "b", "total"), [(3, 9, 12), (0, 0, 3), (5, 5, 5)])
def test_newcombe_is_statsmodels(a: int, b: int, total: int):
    from statsmodels.stats.proportion import confint_proportions_2indep

    expected = confint_proportions_2indep(b, total, a, total, compare="diff", method="newcomb")
    assert newcombe(wilson(a, total), wilson(b, total)) == pytest.approx(expected, abs=1e-9)


def test_nothing_counted_is_no_rate():
    assert wilson(0, 0).value is None and str(wilson(0, 0)) == "– (0)"


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 9), (10, 10), (0, 12)])
def test_mcnemar_is_statsmodels(gained: int, lost: int):
    expected = statsmodels_mcnemar([[5, gained], [lost, 5]], exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


def test_paired_rates_are_bonett_and_prices_formula():
    """40 prompts, 12 gained, 2 lost: p12 = 13/42, p21 = 3/42, d = 10/42 ± 1.96·√((16/42 − (10/42)²)/42)."""
    difference, low, high = paired_rates(12, 2, 40)
    half = norm.ppf(0.975) * ((16 / 42 - (10 / 42) ** 2) / 42) ** 0.5
    assert (difference, low, high) == pytest.approx((10 / 40, 10 / 42 - half, 10 / 42 + half))


def test_few_prompts_that_did_not_change_are_no_proof_of_sameness():
    _, low, high = paired_rates(0, 0, 3)
    assert low < -0.3 and high > 0.3
    few, many = share([0.5] * 2), share([0.5] * 100)
    assert few.low < 0.1 and many.low > 0.4  # type: ignore[operator]


def test_a_share_of_ones_and_zeros_is_wilsons():
    rate = wilson(7, 20)
    found = share([1.0] * 7 + [0.0] * 13)
    assert (found.low, found.high) == pytest.approx((rate.low, rate.high))


def test_mcnemar_by_hand():
    """Six of six changed one way: 2 · (1/2)^6."""
    assert mcnemar(6, 0) == pytest.approx(2 / 64)


def test_a_paired_difference_uses_the_pairing():
    """Two models that differ on the same few prompts: apart as rates they overlap, paired they don't."""
    before = np.repeat([1, 1, 0, 0], 25)
    after = before.copy()
    after[:12] = 0
    difference, _, high = paired_difference(before, after)
    assert difference == pytest.approx(-0.12) and high < 0
    apart = wilson(int(before.sum()), 100), wilson(int(after.sum()), 100)
    assert apart[0].low < apart[1].high  # type: ignore[operator]


def test_the_bootstrap_comes_close_to_theory():
    """For many normal values the percentile interval is mean ± 1.96 standard errors."""
    values = np.random.default_rng(1).normal(3, 2, size=400)
    mean, low, high = bootstrap(values)
    error = values.std(ddof=1) / 20
    assert mean == values.mean()
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)


@pytest.mark.parametrize("num", [2, 5, 40])
def test_the_bootstrap_of_pairs_is_scipys(num: int):
    """A ratio of sums over prompts that are drawn together, from the same draws."""
    before, after = np.random.default_rng(num).integers(1, 50, size=(2, num))

    def ratio(before: np.ndarray, after: np.ndarray, axis: int = -1) -> np.ndarray:
        return after.sum(axis) / before.sum(axis)

    value, low, high = bootstrap(before, after, statistic=ratio)
    expected = stats.bootstrap(
        (before, after),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=NUM_RESAMPLES,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    assert value == after.sum() / before.sum()
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[0.3], [0.3] * 7, [0.0, 0.0]])
def test_values_that_are_all_the_same_have_a_point_for_an_interval(values: list[float]):
    assert bootstrap(values) == pytest.approx((values[0],) * 3)
    assert paired_difference(values, values) == (0, 0, 0)


@pytest.mark.parametrize("num", [1, 7, 15])
def test_sign_flips_are_scipys(num: int):
    """Exhaustively up to ten values; below two scipy says nothing, and either sign is as far."""
    values = np.random.default_rng(num).normal(0.4, 1, size=num)
    if num == 1:
        assert sign_flip_test(values) == 1.0
        return
    expected = stats.permutation_test(
        (values,),
        lambda drawn, axis: np.abs(drawn.mean(axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=2**num,
    )
    assert sign_flip_test(values) == pytest.approx(expected.pvalue, abs=0.03)


def test_sign_flips_are_counted_exhaustively():
    differences = [1.0, 2.0, -0.5, 1.5]
    signs = np.array(list(itertools.product([-1, 1], repeat=4)))
    exact = (np.abs((signs * differences).mean(1)) >= abs(np.mean(differences)) - 1e-12).mean()
    assert sign_flip_test(differences) == pytest.approx(exact, abs=0.03)
    assert sign_flip_test([0.0, 0.0]) == 1.0


def test_holm_is_statsmodels_and_leaves_gaps():
    p_values = [0.01, 0.04, 0.03, 0.2]
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert holm([0.03, None, 0.02]) == [pytest.approx(0.04), None, pytest.approx(0.04)]


def test_benjamini_hochberg_names_more_than_holm_and_leaves_gaps():
    p_values = [0.01, 0.04, 0.03, 0.2]
    assert benjamini_hochberg(p_values) == pytest.approx(list(multipletests(p_values, method="fdr_bh")[1]))
    assert benjamini_hochberg([0.03, None, 0.02]) == [pytest.approx(0.03), None, pytest.approx(0.03)]
    assert benjamini_hochberg([None]) == [None]


def test_bradley_terry_recovers_known_strengths():
    """Wins in their expected numbers give back the strengths; a draw among equals gives none."""
    strengths = np.array([0.0, 1.0, -0.5])
    p = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    elo, low, high = bradley_terry(100_000 * p)
    assert elo == pytest.approx((strengths - strengths[0]) * 400 / np.log(10), abs=0.5)
    assert (low <= elo).all() and (elo <= high).all()
    assert bradley_terry(np.full((3, 3), 10.0))[0] == pytest.approx(np.zeros(3), abs=1e-3)


def test_bradley_terry_is_finite_for_one_who_never_lost():
    elo, low, high = bradley_terry([[0, 0, 0], [9, 0, 9], [9, 0, 0]])
    assert np.isfinite([elo, low, high]).all() and elo[1] > elo[2] > elo[0]


def test_the_spread_of_equal_groups_is_chance():
    """Max minus min of equal groups is above zero; its p says that this means nothing. A real difference is told."""
    rng = np.random.default_rng(3)
    equal = {group: rng.integers(0, 2, 20) for group in "abc"}
    apart = {"a": np.ones(20), "b": np.zeros(20), "c": np.zeros(20)}
    assert np.ptp([values.mean() for values in equal.values()]) > 0
    assert spread_test(equal) > 0.1 and spread_test(apart) < 0.01  # type: ignore[operator]
    assert spread_test({"a": [1, 0]}) is None


def test_the_spread_test_is_brute_force_on_two_templates():
    outcomes = {"a": [1, 1], "b": [0, 0]}
    table = np.array(list(outcomes.values()), float)
    seen, hits, num = np.ptp(table.mean(1)), 0, 0
    for first, second in itertools.product(itertools.permutations(table[:, 0]), itertools.permutations(table[:, 1])):
        rates = (np.array(first) + np.array(second)) / 2
        hits, num = hits + (np.ptp(rates) >= seen - 1e-12), num + 1
    assert spread_test(outcomes) == pytest.approx(hits / num, abs=0.04)
