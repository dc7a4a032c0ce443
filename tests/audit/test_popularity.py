"""Concentration and popularity of served lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from shielded_recrl.audit import popularity
from shielded_recrl.audit.popularity import (
    category_mass,
    category_shares,
    concentration,
    gini,
    long_tail,
    per_user,
    resampled_concentration,
    taste_distance,
)
from shielded_recrl.audit.resampling import draws, jackknife_interval, leave_outs

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


@given(COUNTS, st.integers(0, 20))
def test_items_left_out_count_as_never_exposed(counts, absent):
    padded = np.pad(counts, (0, absent))
    assert gini(counts, len(padded)) == pytest.approx(gini(padded), abs=1e-12)


@pytest.mark.parametrize("block", [1, 2**22])
def test_resampled_lists_equal_lists_that_are_repeated(monkeypatch, block):
    monkeypatch.setattr(popularity, "BLOCK", block)
    rng = np.random.default_rng(5)
    owners = np.repeat(np.arange(6), 4)
    served = rng.integers(3, 11, size=24)
    times = draws(6, 20, seed=2)
    found = resampled_concentration(served, owners, 15, times)
    for row, drawn in enumerate(times):
        expected = concentration(np.repeat(served, drawn[owners]), 15)
        assert found["gini"][row] == pytest.approx(expected["gini"])
        assert found["coverage"][row] == pytest.approx(expected["coverage"])


def test_the_interval_of_the_change_covers_it_on_a_sparse_catalogue():
    """200 users, 2,000 items, a tenth of the slots moved to ten items, drawn anew 80 times.

    A bootstrap, whose resamples are the more concentrated the sparser the lists, covers it in 8% of
    them.
    """
    rng = np.random.default_rng(1)
    users, items = 200, 2000
    liked = rng.pareto(1.2, items) + 1
    owners, times = np.repeat(np.arange(users), 10), leave_outs(users)
    found = {"gini": [], "coverage": []}
    for _ in range(80):
        before = np.concatenate(
            [rng.choice(items, 10, replace=False, p=liked / liked.sum()) for _ in range(users)]
        )
        after = np.where(rng.random(before.size) < 0.1, rng.integers(0, 10, before.size), before)
        levels = [concentration(served, items) for served in (before, after)]
        without = [
            resampled_concentration(served, owners, items, times) for served in (before, after)
        ]
        for key, intervals in found.items():
            intervals.append(
                jackknife_interval(
                    levels[1][key] - levels[0][key], without[1][key] - without[0][key]
                )
            )
    for intervals in found.values():
        true = np.mean([one["mean"] for one in intervals])
        # Of 80 at 95%, fewer than 70 would be one in two thousand.
        assert sum(one["low"] <= true <= one["high"] for one in intervals) >= 70
        # And it is no wider than three times what it has to be.
        width = np.mean([one["high"] - one["low"] for one in intervals])
        assert width < 3 * 2 * 1.96 * np.std([one["mean"] for one in intervals])


def test_an_item_shares_itself_among_its_categories():
    shares = category_shares([["b", "a"], [], ["a", "a"]]).toarray()
    np.testing.assert_array_equal(shares, [[0.5, 0.5], [0, 0], [1, 0]])


def test_taste_by_hand():
    shares = category_shares([["a"], ["b"], ["a", "b"], []])
    taste = category_mass(np.array([0, 0, 2]), np.array([0, 0, 1]), 4, shares)
    np.testing.assert_array_equal(taste, [[2, 0], [0.5, 0.5], [0, 0], [0, 0]])
    listed = category_mass(np.array([1, 2, 2, 0, 3]), np.array([0, 1, 1, 2, 3]), 4, shares)
    distance = taste_distance(listed, taste)
    # Nothing in common: 1. The same: 0. The third had nothing before, the fourth never anything.
    np.testing.assert_array_equal(distance, [1, 0, np.nan, np.nan])


@given(
    arrays(float, (3, 4), elements=st.floats(0.01, 9)),
    arrays(float, (3, 4), elements=st.floats(0.01, 9)),
)
def test_taste_distance_is_the_root_of_the_mean_divergence_from_the_middle(listed, taste):
    p, q = (mass / mass.sum(axis=1, keepdims=True) for mass in (listed, taste))
    middle = (p + q) / 2
    divergence = (entropy(p, middle, base=2, axis=1) + entropy(q, middle, base=2, axis=1)) / 2
    distance = taste_distance(listed, taste)
    np.testing.assert_allclose(distance**2, divergence, atol=1e-9)
    assert ((distance >= 0) & (distance <= 1)).all()
