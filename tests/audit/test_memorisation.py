"""Exposure by hand, and membership inference against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from shielded_recrl.audit.memorisation import (
    auc_interval,
    canary_report,
    chance_exposure,
    exposure,
    membership_report,
    tpr_at,
)

# Few values, so that there are ties.
SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


def test_exposure_by_hand():
    others = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert exposure(1.0, others) == 3.0  # first of eight
    assert exposure(2.5, others) == 2.0  # second of eight
    assert exposure(4.5, others) == 1.0  # fourth of eight
    assert exposure(9.0, others) == 0.0  # last of eight


def test_ties_count_against_us():
    assert exposure(2.0, [2.0, 2.0, 2.0]) == 2.0
    assert exposure(2.0, [1.0, 2.0, 2.0]) == 1.0


@given(loss=st.integers(0, 9), others=st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_exposure_is_bounded_and_looks_at_the_order_alone(loss, others):
    got = exposure(loss, others)
    assert 0 <= got <= math.log2(len(others) + 1)
    assert exposure(math.exp(loss), np.exp(others)) == got
    assert exposure(loss - 1, others) >= got


@pytest.mark.parametrize("alternatives", [1, 7, 1000])
def test_chance_is_the_mean_over_all_ranks(alternatives):
    ranks = [exposure(place + 0.5, np.arange(alternatives)) for place in range(-1, alternatives)]
    assert chance_exposure(alternatives) == pytest.approx(np.mean(ranks), abs=1e-9)


def test_canary_report_by_hand():
    rows = [
        {"canary": "a", "repeats": 16, "before": 3.0, "after": 2.0},
        {"canary": "b", "repeats": 1, "before": 1.0, "after": 0.5},
        {"canary": "c", "repeats": 16, "before": 2.0, "after": 3.0},
        {"canary": "d", "repeats": 1, "before": 0.0, "after": 2.5},
    ]
    assert canary_report({"candidates": 7, "rows": rows}) == {
        "evaluable": True,
        "canaries": 4,
        "candidates": 7,
        "chance": pytest.approx(3 - math.log2(math.factorial(8)) / 8),
        "ceiling": 3.0,
        "repeats": [
            {"repeats": 1, "canaries": 2, "before": 0.5, "after": 1.5},
            {"repeats": 16, "canaries": 2, "before": 2.5, "after": 2.5},
        ],
        "before": {"mean": 1.5, "max": 3.0},
        "after": {"mean": 2.0, "max": 3.0},
        "largest_rise": {"repeats": 1, "before": 0.0, "after": 2.5},
    }


@pytest.mark.parametrize("section", [None, {"candidates": 7, "rows": []}])
def test_without_canaries_there_is_nothing_to_report(section):
    got = canary_report(section)
    assert got["evaluable"] is False
    assert "explainer.pretrain.canaries" in got["reason"]


@given(members=SCORES, others=SCORES)
def test_the_area_is_scikit_learn_s(members, others):
    got = auc_interval(np.array(members, float), np.array(others, float), 50, seed=0)
    labels = [1] * len(members) + [0] * len(others)
    assert got.mean == pytest.approx(roc_auc_score(labels, members + others))
    assert 0 <= got.low <= got.high <= 1


@given(members=SCORES, others=SCORES, rate=st.sampled_from([0.01, 0.05, 0.2, 0.5]))
def test_true_positives_are_scikit_learn_s(members, others, rate):
    labels = [1] * len(members) + [0] * len(others)
    fpr, tpr, _ = roc_curve(labels, members + others, drop_intermediate=False)
    got = tpr_at(np.array(members, float), np.array(others, float), rate)
    assert got == pytest.approx(tpr[fpr <= rate + 1e-9].max())


def test_one_of_a_hundred_is_one_percent():
    others = np.arange(100.0)
    # Above 98 lies one non-member, 99.
    assert tpr_at(np.array([98.5, 97.0]), others, 0.01) == 0.5


def test_the_interval_is_as_wide_as_the_theory_says():
    """Hanley and McNeil (1982): at an area of 0.5, the variance is (m + n + 1) / 12 m n."""
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=128), rng.normal(size=128)
    got = auc_interval(members, others, 2000, seed=1)
    deviation = math.sqrt(257 / 12 / 128**2)
    assert got.high - got.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert got == auc_interval(members, others, 2000, seed=1)
    assert got != auc_interval(members, others, 2000, seed=2)


def rows(fall_of_members, fall_of_others):
    falls = [(True, fall) for fall in fall_of_members] + [(False, fall) for fall in fall_of_others]
    return [
        {"user": user, "member": member, "base": 3.0, "adapter": 3.0 - fall}
        for user, (member, fall) in enumerate(falls, start=1)
    ]


def test_membership_report_by_hand():
    got = membership_report(rows([0.5, 0.25, 0.0, 1.0], [0.0, 0.25, -0.5, 0.0]), 200, seed=0)
    # Pairs won: 4 + 3.5 + 2 + 4 of 16, ties as halves.
    assert got["auc"]["mean"] == 13.5 / 16
    assert got["auc"]["low"] < 13.5 / 16 < got["auc"]["high"] <= 1.0
    assert (got["members"], got["nonmembers"]) == (4, 4)
    # No false positive is allowed among four: above 0.25 lie two members.
    assert got["tpr"] == {"0.01": 0.5, "0.05": 0.5}
    assert got["loss_fall"] == {"members": 0.4375, "nonmembers": -0.0625}


def test_an_adapter_that_leaves_all_prompts_alone_tells_nothing():
    got = membership_report(rows([0.0] * 20, [0.0] * 20), 100, seed=0)
    assert got["auc"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert got["tpr"] == {"0.01": 0.0, "0.05": 0.0}


@pytest.mark.parametrize("sides", [([], [0.1]), ([0.1], []), ([], [])])
def test_both_sides_are_needed(sides):
    got = membership_report(rows(*sides), 100, seed=0)
    assert got["evaluable"] is False
    assert "both are needed" in got["reason"]
