"""Bootstrap intervals: against closed forms, SciPy, and each other."""

import numpy as np
import pytest
from scipy import stats

from shielded_recrl.statistics import bootstrap, bootstrap_means, paired_bootstrap

NORMAL = np.random.default_rng(0).normal(0.3, 1.0, size=400)


def test_mean_interval_is_near_the_normal_one():
    got = paired_bootstrap(NORMAL, resamples=4000, seed=1)
    half = 1.96 * NORMAL.std() / len(NORMAL) ** 0.5
    assert got.mean == pytest.approx(NORMAL.mean(), abs=1e-12)
    assert got.low == pytest.approx(NORMAL.mean() - half, abs=0.1 * half)
    assert got.high == pytest.approx(NORMAL.mean() + half, abs=0.1 * half)


def test_mean_interval_agrees_with_scipy():
    skewed = np.exp(NORMAL)
    expected = stats.bootstrap(
        (skewed,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    got = paired_bootstrap(skewed, resamples=4000, seed=1)
    assert (got.low, got.high) == pytest.approx(tuple(expected), rel=0.02)


def test_seed_and_blocks():
    assert paired_bootstrap(NORMAL, seed=1) == paired_bootstrap(NORMAL, seed=1)
    assert paired_bootstrap(NORMAL, seed=1) != paired_bootstrap(NORMAL, seed=2)
    many = np.zeros(2**20 + 1)
    many[0] = 1
    # More units than a block holds: one resample at a time, still exactly so many of them.
    calls = []
    bootstrap(many[:, None], lambda s: calls.append(s.shape) or s[..., 0], resamples=3)
    assert calls == [(1, 1), (1, 1), (1, 1), (1,)]


def test_clusters_of_one_change_nothing_but_the_order():
    alone = paired_bootstrap(NORMAL, seed=4)
    assert paired_bootstrap(NORMAL, seed=4, clusters=np.arange(400)) == pytest.approx(alone)


def test_repeated_units_widen_the_interval_only_when_clustered():
    """Ten copies of each unit carry no information: clustered, the width is that of the originals."""
    copies, owner = np.repeat(NORMAL[:80], 10), np.repeat(np.arange(80), 10)
    original = paired_bootstrap(NORMAL[:80], seed=5)
    assert paired_bootstrap(copies, seed=5, clusters=owner) == pytest.approx(original)
    naive = paired_bootstrap(copies, seed=5)
    ratio = (original.high - original.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(10**0.5, rel=0.1)


def test_clusters_count_by_their_size():
    differences, owner = np.array([1.0, 1, 1, 5]), np.array(["a", "a", "a", "b"])
    got = paired_bootstrap(differences, seed=0, clusters=owner)
    # Samples are aa, ab, ba, bb: means 1, 2, 2, 5.
    assert got == (2.0, 1.0, 5.0)


def test_ratio_of_sums():
    before, after = np.array([1.0, 2, 3]), np.array([1.5, 3, 4.5])
    got = bootstrap(np.stack([before, after], axis=1), lambda s: s[..., 1] / s[..., 0] - 1)
    assert got == pytest.approx((0.5, 0.5, 0.5))


def test_columns_together_are_columns_alone():
    """Also where the units fill several blocks of draws."""
    columns = np.random.default_rng(2).random((30_000, 2))
    together = bootstrap_means(columns, resamples=150, seed=6)
    for column, got in zip(columns.T, together, strict=True):
        assert got == pytest.approx(paired_bootstrap(column, resamples=150, seed=6), rel=1e-12)
    with pytest.raises(ValueError, match="at least one unit"):
        bootstrap_means(np.empty((0, 2)))
    with pytest.raises(ValueError, match="finite"):
        bootstrap_means(np.array([[1.0, np.inf]]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one unit"):
        paired_bootstrap(np.array([]))
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="clusters"):
        paired_bootstrap(np.ones(3), clusters=np.ones(2))
