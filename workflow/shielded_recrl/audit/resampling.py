"""Bootstrap of statistics that are no function of sums: a quantile, a Gini, a largest difference.

In: how often each user is drawn in each resample. Out: intervals of what is computed on the
resampled users (Efron and Tibshirani 1993, ch. 13).
"""

from __future__ import annotations

import numpy as np

from shielded_recrl.statistics import Interval


def draws(units: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of U units is drawn in each of B resamples, int64 [B, U].

    Units drawn with replacement, U a resample, are multinomial with equal shares.

    Raises:
        ValueError: there is no unit.
    """
    if units < 1:
        raise ValueError("expected at least one unit to draw")
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), resamples)


def interval(estimate: float, resampled: np.ndarray) -> dict[str, float]:
    """An estimate with the 95% percentile interval of its resampled values [B]."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(estimate), float(low), float(high))._asdict()


def resampled_percentile(values: np.ndarray, percent: float, times: np.ndarray) -> np.ndarray:
    """Percentile of each resample [B], interpolated linearly as by `np.percentile`.

    Args:
        values: [N], one a text.
        percent: from 0 to 100.
        times: [B, N], how often each value is drawn; at least one value a resample.
    """
    order = np.argsort(values, kind="stable")
    ends = times[:, order].cumsum(axis=1)
    place = (ends[:, -1] - 1) * percent / 100
    below = np.floor(place)

    def at(rank: np.ndarray) -> np.ndarray:
        return values[order[(ends <= rank[:, None]).sum(axis=1)]]

    share = place - below
    return at(below) * (1 - share) + at(np.ceil(place)) * share
