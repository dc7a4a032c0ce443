"""Concentration and popularity of served lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shielded_recrl.audit.popularity import concentration, gini, long_tail, per_user

COUNTS = arrays(np.int64, st.integers(2, 30), elements=st.integers(0, 1000)).filter(np.any)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_gini_of_equal_and_of_single_exposure(n):
    assert gini(np.full(n, 3)) == pytest.approx(0)
    assert gini(np.eye(n)[0]) == pytest.approx(1 - 1 / n)


def test_gini_by_hand():
    # Mean absolute difference of 1, 2, 6 over all ordered pairs: 2 (1 + 5 + 4) / 9; twice mean: 6.
    assert gini(np.array([6, 1, 2])) == pytest.approx(20 / 9 / 6)


def test_gini_of_nothing_is_refused():
    with pytest.raises(ValueError, match="undefined"):
        gini(np.zeros(4))


@given(COUNTS, st.integers(1, 9), st.randoms())
def test_gini_ignores_order_and_scale(counts, factor, random):
    shuffled = counts.tolist()
    random.shuffle(shuffled)
    value = gini(counts)
    assert gini(factor * np.array(shuffled)) == pytest.approx(value)
    assert -1e-12 <= value <= 1 - 1 / len(counts) + 1e-12


@given(COUNTS)
def test_gini_falls_when_the_first_gives_to_the_last(counts):
    rich, poor = counts.argmax(), counts.argmin()
    moved = counts.copy()
    step = (counts[rich] - counts[poor]) // 2
    moved[rich] -= step
    moved[poor] += step
    assert gini(moved) <= gini(counts) + 1e-12


def test_long_tail_leaves_out_the_head_and_breaks_ties_by_id():
    np.testing.assert_array_equal(
        long_tail(np.array([5, 9, 5, 1, 5]), 0.4), [False, False, True, True, True]
    )


def test_lists_by_hand():
    served, users = np.array([0, 1, 0, 2]), np.array([7, 7, 4, 4])
    # Exposure 0, 0, 1, 1, 2: (2 * 1 + 4 * 2) / (5 * 4).
    assert concentration(served, 5) == {"gini": pytest.approx(0.5), "coverage": pytest.approx(0.6)}
    means = per_user(served, users, np.array([10, 6, 2, 1, 0]), 0.2)
    np.testing.assert_allclose(means["average_popularity"], [6, 8])
    np.testing.assert_allclose(means["long_tail_share"], [0.5, 0.5])


def test_lists_may_differ_in_length():
    means = per_user(np.array([0, 1, 2]), np.array([1, 1, 2]), np.array([4, 2, 1]), 0.3)
    np.testing.assert_allclose(means["average_popularity"], [3, 1])
