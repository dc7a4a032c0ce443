"""Means by group, gaps, their resamples, and the permutation test."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.audit.fairness import (
    by_group,
    exposure,
    grouping,
    ndcg,
    permutation_p,
    quantile_labels,
    resampled_gap,
)
from shielded_recrl.audit.resampling import draws
from shielded_recrl.ranker.metrics import ranking_metrics, top_k


def test_ndcg_equals_that_of_the_ranker():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 31))
    seen = rng.random(scores.shape) < 0.2
    relevant = (rng.random(scores.shape) < 0.15) & ~seen
    relevant[:, 0] = seen[:, 0] = False
    # One user with more to find than the list is long.
    relevant[3], seen[3] = np.arange(31) > 15, False
    relevant[np.arange(40), 1], seen[np.arange(40), 1] = True, False
    lists = top_k(scores, seen)
    users = np.repeat(np.arange(40), 10)
    found = ndcg(users, lists.ravel(), np.tile(np.arange(1, 11), 40), np.nonzero(relevant))
    np.testing.assert_allclose(found, ranking_metrics(scores, relevant, seen).ndcg)


def test_a_user_with_nothing_to_find_is_named():
    users, ones = np.array([4, 9]), np.ones(2, dtype=int)
    with pytest.raises(ValueError, match="user 9 has nothing to find"):
        ndcg(users, ones, ones, (np.array([4, 5]), np.array([1, 1])))


def test_ndcg_looks_no_further_than_k():
    users, positions = np.ones(3, dtype=int), np.arange(1, 4)
    relevant = (np.ones(2, dtype=int), np.array([7, 9]))
    items = np.array([5, 7, 9])
    ideal = 1 + 1 / np.log2(3)
    assert ndcg(users, items, positions, relevant, k=2)[0] == pytest.approx(
        (1 / np.log2(3)) / ideal
    )


def test_exposure_by_hand():
    users, positions = np.array([2, 2, 1, 1]), np.array([1, 3, 1, 3])
    # Weights 1 and 1/2.
    found = exposure(users, positions, np.array([True, False, False, True]))
    np.testing.assert_allclose(found, [1 / 3, 2 / 3])


def test_levels_keep_equal_values_together():
    values = np.array([5, 5, 5, 1, 9, 9])
    assert quantile_labels(values, 2) == ["low", "low", "low", "low", "high", "high"]
    assert quantile_labels(np.arange(6), 3) == ["low", "low", "middle", "middle", "high", "high"]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([None, None], "nobody tells"),
        (["f", "f", None], "all users with a label are 'f'"),
        (["f", "f", "m"], "fewer than two groups have 2 users: 'f' has 2, 'm' has 1"),
        (["f", "m"], "fewer than two groups have 2 users: 'f' has 1, 'm' has 1"),
        (["f", "f", "m", "m", "x"], None),
        (["f", "f", "m", "m", None], None),
    ],
)
def test_a_grouping_says_why_it_cannot_be_told(labels, reason):
    assert grouping(labels, 2, "nobody tells").reason == reason


def test_who_has_no_group_is_left_out():
    found = grouping(["m", None, "f", "m"], 1, "")
    np.testing.assert_array_equal(found.members, [True, False, True, True])
    np.testing.assert_array_equal(found.labels, ["m", "f", "m"])


def test_one_small_group_does_not_hide_the_others():
    found = grouping(["f", "x", "m", "f", "m", None], 2, "")
    assert (found.groups, found.left_out, found.reason) == (("f", "m"), {"x": 1}, None)
    np.testing.assert_array_equal(found.members, [True, False, True, True, True, False])
    np.testing.assert_array_equal(found.labels, ["f", "m", "f", "m"])


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(-3, 3)), min_size=2, max_size=20).filter(
        lambda rows: len({label for label, _ in rows}) > 1
    )
)
# The first example imports fairlearn, which may take a second.
@hypothesis.settings(deadline=None)
def test_a_gap_is_fairlearns_and_of_repeated_users(rows):
    labels = np.array([label for label, _ in rows])
    values = np.array([value for _, value in rows])
    membership = grouping(labels.tolist(), 1, "").membership
    frame = by_group({"x": values, "y": -2 * values}, labels)
    whole = np.ones((1, len(rows)), dtype=int)
    gap = resampled_gap(values, membership, whole)[0]
    assert frame.difference(method="between_groups")["x"] == pytest.approx(gap, abs=1e-9)
    assert frame.difference(method="between_groups")["y"] == pytest.approx(2 * gap, abs=1e-9)
    for label in set(labels):
        assert frame.by_group["x"][label] == pytest.approx(values[labels == label].mean())
    times = draws(len(rows), 5, seed=1)
    for drawn, found in zip(times, resampled_gap(values, membership, times), strict=True):
        means = [
            np.repeat(values, drawn * (labels == label)).mean()
            for label in "abc"
            if drawn[labels == label].any()
        ]
        assert found == pytest.approx(np.ptp(means), abs=1e-9)


def test_permutation_test_is_exact_on_few_users():
    values = np.array([0.0, 0.1, 0.9, 1.0, 0.8])
    labels = np.array(["a", "a", "b", "b", "b"])
    observed = values[2:].mean() - values[:2].mean()
    splits = [
        abs(values[list(one)].mean() - np.delete(values, one).mean())
        for one in itertools.combinations(range(5), 2)
    ]
    expected = np.mean(np.array(splits) >= observed - 1e-12)
    assert permutation_p(values, labels, 10_000, seed=0) == pytest.approx(expected)


def test_permutation_test_keeps_its_level_and_finds_a_difference():
    rng = np.random.default_rng(4)
    labels = np.array(["a", "b", "c"] * 20)
    p = [permutation_p(rng.normal(size=60), labels, 99, seed) for seed in range(100)]
    # Binomial(100, 0.1): at most 18 with 99.5%.
    assert np.mean(np.array(p) <= 0.1) <= 0.18
    assert np.mean(p) == pytest.approx(0.5, abs=0.12)
    assert permutation_p(rng.normal(size=60) + 3 * (labels == "b"), labels, 99, 0) == 0.01
