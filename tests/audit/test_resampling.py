"""Bootstrap and jackknife of what is no function of sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from shielded_recrl.audit import resampling
from shielded_recrl.audit.resampling import (
    draws,
    interval,
    jackknife_interval,
    leave_outs,
    percentile_of_draws,
    resampled_percentile,
)


def test_draws_are_samples_with_replacement():
    times = draws(7, 4000, seed=1)
    assert times.shape == (4000, 7)
    np.testing.assert_array_equal(times.sum(axis=1), 7)
    # Binomial(7, 1/7): mean 1, variance 6/7.
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(times.var(axis=0), 6 / 7, atol=0.1)
    np.testing.assert_array_equal(times, draws(7, 4000, seed=1))


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="at least one unit"):
        draws(0, 10, seed=0)


@given(
    arrays(float, st.integers(1, 8), elements=st.floats(-5, 5)),
    st.floats(0, 100),
    st.data(),
)
def test_percentile_equals_that_of_repeated_values(values, percent, data):
    rows = st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))
    times = np.array(data.draw(st.lists(rows.filter(any), min_size=1, max_size=4)))
    expected = [np.percentile(np.repeat(values, row), percent) for row in times]
    np.testing.assert_allclose(resampled_percentile(values, percent, times), expected, atol=1e-12)


def test_percentiles_of_draws_a_few_at_a_time(monkeypatch):
    """Users have one text to three; the resamples are those of all draws at once."""
    rng = np.random.default_rng(2)
    users = rng.permutation(np.repeat([4, 7, 8, 9, 11], [1, 3, 2, 3, 1]))
    values = rng.normal(size=len(users))
    _, member_of = np.unique(users, return_inverse=True)
    expected = resampled_percentile(values, 95, draws(5, 23, seed=6)[:, member_of])
    for size in (1, 4, 23, 50):
        blocks = np.diff([*range(0, 23, size), 23])
        monkeypatch.setattr(resampling, "block_sizes", lambda *_, found=blocks: found)
        got = percentile_of_draws(values, 95, users, 23, 6)
        np.testing.assert_array_equal(got, expected)


def test_interval_has_the_central_95_percent():
    assert interval(30, np.arange(201.0)) == {"mean": 30, "low": 5, "high": 195}


@pytest.mark.parametrize("estimate", [3, 199])
def test_an_interval_holds_its_estimate(estimate):
    """Resampled gaps lie above a gap near 0."""
    ends = interval(estimate, np.arange(201.0))
    assert ends == {"mean": estimate, "low": min(5, estimate), "high": max(195, estimate)}


@given(st.integers(2, 40), st.integers(2, 12))
def test_every_unit_is_left_out_once(units, groups):
    times = leave_outs(units, groups)
    assert times.shape == (min(units, groups), units)
    np.testing.assert_array_equal((1 - times).sum(axis=0), 1)
    left_out = (1 - times).sum(axis=1)
    assert np.ptp(left_out) <= 1


def test_jackknife_of_a_mean_is_its_t_interval():
    values = np.random.default_rng(0).normal(size=12)
    times = leave_outs(12)
    found = jackknife_interval(values.mean(), times @ values / times.sum(axis=1))
    low, high = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert found == pytest.approx({"mean": values.mean(), "low": low, "high": high})


def test_one_unit_cannot_be_left_out():
    with pytest.raises(ValueError, match="two units"):
        leave_outs(1)
