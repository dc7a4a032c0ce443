"""Reliability bins and ECE: by hand, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from shielded_recrl.rl.evaluation.base import click_rates
from shielded_recrl.rl.evaluation.calibration import bin_of, calibration_report, reliability

RNG = np.random.default_rng(0)
PREDICTED = RNG.random(60)
DRAWS = RNG.random((60, 50))
OBSERVED = click_rates(PREDICTED**2, DRAWS)
USERS = np.repeat(np.arange(30), 2)


def report(predicted, observed, bins=10, users=USERS):
    return calibration_report(predicted, observed, users, 50, bins, 200, 0)


@pytest.mark.parametrize("bins", [1, 5, 10, 15])
def test_bins_are_those_of_sklearn(bins):
    """Which sees every session as an observation of its own."""
    clicks = ((PREDICTED**2)[:, None] > DRAWS).astype(int)
    observed, predicted = calibration_curve(
        clicks.ravel(), np.repeat(PREDICTED, 50), n_bins=bins, strategy="uniform"
    )
    got = reliability(PREDICTED, OBSERVED, 50, bins)
    assert [row["observed"] for row in got] == pytest.approx(observed.tolist())
    assert [row["predicted"] for row in got] == pytest.approx(predicted.tolist())
    counts = np.histogram(PREDICTED, np.linspace(0, 1, bins + 1))[0]
    assert [row["count"] for row in got] == (50 * counts[counts > 0]).tolist()
    error = sum(r["count"] * abs(r["observed"] - r["predicted"]) for r in got) / (60 * 50)
    assert report(PREDICTED, OBSERVED, bins)["ece"] == pytest.approx(error)


def test_ece_by_hand():
    """Bins (0.2, 0.3] with two texts off by +0.1 and -0.3, and (0.7, 0.8] with one off by 0.25."""
    predicted, observed = np.array([0.25, 0.3, 0.75]), np.array([0.35, 0.0, 0.5])
    got = report(predicted, observed, users=np.array([1, 2, 3]))
    assert got["ece"] == pytest.approx((abs(0.1 - 0.3) + 0.25) / 3)
    first, second = got["bins"]
    assert first == pytest.approx({"predicted": 0.275, "observed": 0.175, "count": 100})
    assert second == pytest.approx({"predicted": 0.75, "observed": 0.5, "count": 50})


def test_edges_belong_to_the_bin_below():
    assert bin_of(np.array([0.0, 0.1, 0.100001, 0.5, 1.0]), 10).tolist() == [0, 0, 1, 4, 9]
    for wrong in (-0.01, 1.01, np.nan):
        with pytest.raises(ValueError, match="probabilities"):
            bin_of(np.array([wrong]), 10)


def test_right_probabilities_are_calibrated_and_wrong_ones_are_not():
    right = report(PREDICTED, click_rates(PREDICTED, DRAWS))
    wrong = report(PREDICTED, OBSERVED)
    assert right["ece"] < 0.03
    assert wrong["ece"] == pytest.approx(1 / 6, abs=0.04)
    assert wrong["ece_low"] < wrong["ece"] < wrong["ece_high"]
    assert wrong["ece_low"] > right["ece_high"]


def test_whole_users_are_drawn():
    """Copies of a text carry no information: the interval is that of one text a user."""
    alone = report(PREDICTED[:30], OBSERVED[:30], users=np.arange(30))
    copies = report(np.repeat(PREDICTED[:30], 2), np.repeat(OBSERVED[:30], 2))
    ends = ("ece", "ece_low", "ece_high")
    assert [copies[end] for end in ends] == pytest.approx([alone[end] for end in ends])


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20),
    st.integers(1, 12),
)
def test_ece_lies_between_the_mean_error_and_the_mean_absolute_one(rows, bins):
    predicted, observed = np.array(rows).T
    got = calibration_report(predicted, observed, np.arange(len(rows)), 10, bins, 10, 0)
    difference = predicted - observed
    assert abs(difference.mean()) - 1e-12 <= got["ece"] <= np.abs(difference).mean() + 1e-12
    assert sum(row["count"] for row in got["bins"]) == 10 * len(rows)
