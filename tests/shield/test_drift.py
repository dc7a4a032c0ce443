"""Drift against scipy and numbers by hand."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from shielded_recrl.shield import drift as drifts
from shielded_recrl.shield.drift import drift, largest_changes


def measured(before, after, relevant=None, seen=None):
    before, after = np.array(before, dtype=float), np.array(after, dtype=float)
    if relevant is None:
        relevant = np.zeros(before.shape, dtype=bool)
        relevant[:, -1] = True
    return drift(before, after, seen=seen, relevant=relevant, resamples=200, seed=0)


def random_case(users: int = 9, items: int = 40):
    rng = np.random.default_rng(0)
    before = rng.normal(size=(users, items))
    seen = rng.random(before.shape) < 0.3
    seen[:, -1] = False
    return before, before + 0.3 * rng.normal(size=before.shape), seen


def test_identical_scores_do_not_drift():
    before, _, seen = random_case()
    got = measured(before, before.copy(), seen=seen)
    assert got == {
        "users": 9,
        "max_score_change": 0.0,
        "mean_score_change": 0.0,
        "top10_identical": 1.0,
        "kendall_tau": pytest.approx(1.0, abs=1e-12),
        "ndcg_users": 9,
        "ndcg_change": 0.0,
        "ndcg_low": 0.0,
        "ndcg_high": 0.0,
        "hr_change": 0.0,
    }


def test_by_hand():
    """Three items; the relevant third rises from third to first place for one of two users.

    NDCG of a single relevant item is 1 / log2(1 + rank): 1/2 -> 1 and 1/2 -> 1/2. The first user's
    pairs: (1,2) kept, (1,3) and (2,3) turned: tau = (1 - 2) / 3; the other's tau is 1.
    """
    before = [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]
    after = [[3.0, 2.5, 4.0], [3.0, 2.0, 1.0]]
    got = measured(before, after)
    assert got["max_score_change"] == 3.0
    assert got["mean_score_change"] == pytest.approx(3.5 / 6)
    assert got["kendall_tau"] == pytest.approx((-1 / 3 + 1) / 2)
    assert got["top10_identical"] == 0.5
    assert got["ndcg_change"] == pytest.approx(0.25)
    assert (got["ndcg_low"], got["ndcg_high"]) == pytest.approx((0.0, 0.5))
    # Three items: the relevant one is in the top 10 either way.
    assert got["hr_change"] == 0.0


def test_the_first_item_is_an_item_like_any_other():
    before, after = np.tile(np.arange(3.0), (2, 1)), np.tile(np.arange(3.0), (2, 1))
    after[0, 0] = 7.0
    got = measured(before, after)
    assert (got["max_score_change"], got["top10_identical"]) == (7.0, 0.5)
    assert got["ndcg_change"] == pytest.approx((1 / np.log2(3) - 1) / 2)


def test_tau_agrees_with_scipy_over_unseen_items():
    before, after, seen = random_case()
    expected = [
        kendalltau(b[~s], a[~s]).statistic for b, a, s in zip(before, after, seen, strict=True)
    ]
    got = measured(before, after, seen=seen)
    assert got["kendall_tau"] == pytest.approx(np.mean(expected))
    assert got["mean_score_change"] == pytest.approx(np.abs(after - before)[~seen].mean())
    assert 0.3 < got["kendall_tau"] < 1


def test_seen_items_do_not_count():
    before, after, seen = random_case()
    same = np.where(seen, after, before)
    masks = seen.copy()
    got = measured(before, same, seen=seen)
    assert got["max_score_change"] == 0.0
    assert got["top10_identical"] == 1.0
    np.testing.assert_array_equal(seen, masks)
    assert largest_changes(before, same).max() > 0


@pytest.mark.parametrize("size", [1, 2, 7])
def test_users_are_compared_some_at_a_time(monkeypatch, size):
    """Blocks without a user who has something to find, or without an unseen item, among them."""
    before, after, seen = random_case()
    relevant = np.random.default_rng(3).random(before.shape) < 0.2
    relevant[:2] = False
    hidden = seen.copy()
    hidden[1] = True
    whole = measured(before, after, seen=seen, relevant=relevant)
    largest = drifts.largest_changes(before, after, hidden)
    monkeypatch.setattr(drifts, "BLOCK", size)
    assert measured(before, after, seen=seen, relevant=relevant) == whole
    np.testing.assert_array_equal(drifts.largest_changes(before, after, hidden), largest)
    assert largest[1] == 0 < largest[0]


def test_the_order_within_the_top_ten_counts():
    before = np.tile(np.arange(20.0), (2, 1))
    after = before.copy()
    after[0, [18, 19]] = after[0, [19, 18]]
    after[1, [0, 1]] = after[1, [1, 0]]
    assert measured(before, after)["top10_identical"] == 0.5


def test_hit_rate_changes_when_a_relevant_item_leaves_the_top_ten():
    before = np.tile(np.arange(20.0), (4, 1))
    after = before.copy()
    after[0, 19] = -1.0
    got = measured(before, after)
    assert got["hr_change"] == -0.25
    assert got["ndcg_change"] == -0.25


def test_users_with_nothing_to_find_are_left_out_of_ndcg_alone():
    """The same change as above; of four users two have a relevant item that is unseen."""
    before = np.tile(np.arange(20.0), (4, 1))
    after = before.copy()
    after[[0, 3], 19] = -1.0
    relevant, seen = np.zeros(before.shape, dtype=bool), np.zeros(before.shape, dtype=bool)
    relevant[[0, 1, 2], 19] = True
    seen[2, 19] = True
    got = measured(before, after, relevant=relevant, seen=seen)
    assert (got["users"], got["ndcg_users"]) == (4, 2)
    assert (got["ndcg_change"], got["hr_change"]) == (-0.5, -0.5)
    assert got["top10_identical"] == 0.5


def test_without_relevant_items_accuracy_is_unknown():
    before, after, seen = random_case()
    full = measured(before, after, seen=seen)
    got = drift(before, after, seen=seen, resamples=10, seed=0)
    unknown = {"ndcg_change", "ndcg_low", "ndcg_high", "hr_change"}
    assert {name for name, value in got.items() if value is None} == unknown
    assert got["ndcg_users"] == 0
    for name in got.keys() - unknown - {"ndcg_users"}:
        assert got[name] == full[name]


def test_tau_is_none_where_it_is_undefined():
    assert measured(np.zeros((2, 5)), np.zeros((2, 5)))["kendall_tau"] is None


@pytest.mark.parametrize(
    ("before", "after", "seen", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), None, "shapes differ"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 4), dtype=bool), "shapes differ"),
        (np.zeros((2, 3)), np.zeros((2, 3)), np.ones((2, 3), dtype=bool), "no unseen item"),
        (np.zeros((0, 3)), np.zeros((0, 3)), None, "no unseen item"),
        (np.zeros((1, 2)), np.array([[0.0, np.nan]]), None, "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(before, after, seen, message):
    with pytest.raises(ValueError, match=message):
        drift(before, after, seen=seen, resamples=10, seed=0)
