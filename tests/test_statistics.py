"""Tests of paired differences: against statsmodels, scipy, and enumeration."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from shielded_recrl.statistics import (
    Interval,
    finite_or_null,
    holm,
    missed,
    paired_bootstrap,
    sign_flip_test,
    tost,
    with_ends,
)

FLAT = np.random.default_rng(0).normal(0.002, 0.03, size=60)


@pytest.mark.parametrize("margin", [0.001, 0.004, 0.01, 0.05])
@pytest.mark.parametrize("shift", [-0.02, 0.0, 0.004])
def test_tost_is_that_of_statsmodels_where_enough_units_were_seen(margin, shift):
    values = np.tile(FLAT, 10) + shift
    expected, *_ = ttost_paired(values, np.zeros(len(values)), -margin, margin)
    floor = missed(abs(values.mean()), len(values), margin)
    assert tost(values, margin) == pytest.approx(max(expected, floor), rel=1e-9)


def test_tost_at_five_percent_is_the_ninety_percent_interval():
    values = np.array([0.3, 0.9, -0.6, 0.0, 0.6])
    half = stats.t.ppf(0.95, 4) * values.std(ddof=1) / 5**0.5
    end = abs(values.mean()) + half
    assert tost(values, end * 1.0001) < 0.05 < tost(values, end * 0.9999)


def test_tost_asks_how_many_units_were_seen():
    assert tost(np.zeros(2), 0.01) == pytest.approx(0.99**2)
    # The rule of three: 298 users without a change leave 1 percent of changed ones possible.
    assert tost(np.zeros(298), 0.01) > 0.05 > tost(np.zeros(299), 0.01)
    assert tost(np.full(4, -0.005), 0.01) == pytest.approx((0.99 / 0.995) ** 4)
    assert tost(np.full(4, 0.01), 0.01) == tost(np.full(400, -0.01), 0.01) == 1.0
    assert tost(np.ones(4), 1.5) == 0.0


@pytest.mark.parametrize("change", [1e-9, 1e-3, 0.5])
def test_one_change_more_is_never_better_evidence_that_nothing_changed(change):
    for users in (128, 299):
        one = np.append(np.zeros(users - 1), change)
        assert tost(one, 0.01) >= tost(np.zeros(users), 0.01)


@pytest.mark.parametrize(
    ("size", "margin", "units"), [(0.0, 0.2, 6), (-0.1, 0.3, 4), (0.05, 0.5, 3)]
)
def test_missed_is_the_worst_population_just_beyond_the_margin(size, margin, units):
    """Most users at `size`, the rest at 1 or -1, and the mean at the margin: draws are all equal."""
    probabilities = [
        (1 - (sign * margin - size) / (sign - size)) ** units  # share of the rest, none of it drawn
        for sign in (-1, 1)
    ]
    assert missed(abs(size), units, margin) == pytest.approx(max(probabilities))
    assert tost(np.full(units, size), margin) == pytest.approx(max(probabilities))


@pytest.mark.parametrize(
    ("differences", "margin"),
    [([0.1], 0.01), ([0.1, 0.2], 0.0), ([0.1, np.nan], 0.1), ([], 0.1), ([0.1, -1.1], 0.1)],
)
def test_tost_refuses(differences, margin):
    with pytest.raises(ValueError, match=r"two units|finite|at least one|\[-1, 1\]"):
        tost(np.array(differences), margin)


def enumerated(sums: np.ndarray) -> float:
    """Share of the assignments of signs whose sum is as far from 0 as that observed."""
    totals = [abs(np.dot(signs, sums)) for signs in product((-1, 1), repeat=len(sums))]
    return float(np.mean([total >= abs(sums.sum()) - 1e-12 for total in totals]))


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=7))
def test_few_pairs_are_enumerated(values):
    values = np.array(values) / 8
    assert sign_flip_test(values, resamples=128) == pytest.approx(enumerated(values))


def test_clusters_are_flipped_together():
    """Two texts of each of five users: 2^5 assignments, not 2^10."""
    values = np.array([0.5, 0.25, 1.0, -0.5, 0.25, 0.75, 0.5, 0.5, -0.25, 0.5])
    users = np.repeat([7, 3, 9, 4, 1], 2)
    sums = values.reshape(5, 2).sum(axis=1)
    assert sign_flip_test(values, users) == pytest.approx(enumerated(sums))
    assert sign_flip_test(values, users) > sign_flip_test(values)


def test_many_pairs_are_drawn():
    got = sign_flip_test(FLAT + 0.006, resamples=20_000, seed=3)
    assert got == sign_flip_test(FLAT + 0.006, resamples=20_000, seed=3)
    assert got != sign_flip_test(FLAT + 0.006, resamples=20_000, seed=4)
    expected = stats.ttest_1samp(FLAT + 0.006, 0).pvalue
    assert got == pytest.approx(expected, abs=0.015)


def test_the_observed_assignment_counts():
    """Sixty equal differences: none drawn is as extreme, and p is 1 / (resamples + 1), not 0."""
    assert sign_flip_test(np.full(60, 0.5), resamples=999) == pytest.approx(1 / 1000)


def test_no_difference_is_no_evidence():
    assert sign_flip_test(np.zeros(30)) == 1.0
    with pytest.raises(ValueError, match="finite"):
        sign_flip_test(np.array([1.0, np.inf]))
    with pytest.raises(ValueError, match="clusters"):
        sign_flip_test(np.ones(3), np.ones(2))


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_that_of_statsmodels(seed):
    """With ties, zeros and ones among them."""
    rng = np.random.default_rng(seed)
    values = rng.permutation([*rng.random(6) ** 3, 0.0, 0.02, 0.02, 1.0])
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1].tolist())
    assert holm([]) == []


def test_holm_refuses_what_is_no_p_value():
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="p-values must lie"):
            holm([0.5, value])


def test_an_estimate_in_json():
    assert with_ends("gain", Interval(0.2, 0.1, 0.3)) == {
        "gain": 0.2,
        "gain_low": 0.1,
        "gain_high": 0.3,
    }
    assert finite_or_null({"a": np.float64(1), "b": np.nan, "c": -np.inf}) == {
        "a": 1.0,
        "b": None,
        "c": None,
    }


def test_interval_and_test_agree_on_a_clear_difference():
    shifted = FLAT + 0.03
    assert paired_bootstrap(shifted).low > 0
    assert sign_flip_test(shifted, resamples=999) < 0.01


def test_one_cluster_shows_nothing():
    assert sign_flip_test(np.array([1.0, 2.0]), np.array([7, 7])) == 1.0
