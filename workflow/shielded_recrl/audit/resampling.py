"""Resampling of statistics that are no function of sums: a quantile, a Gini, a largest difference.

In: how often each user counts in each resample. Out: intervals of what is computed on the resampled
users, by bootstrap (Efron and Tibshirani 1993, ch. 13) or by jackknife (ch. 11).
"""

from __future__ import annotations

import numpy as np

from shielded_recrl.statistics import Interval, block_sizes


def draws(units: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of U units is drawn in each of B resamples, int64 [B, U].

    Units drawn with replacement, U a resample, are multinomial with equal shares.

    Raises:
        ValueError: there is no unit.
    """
    return _drawn(units, resamples, np.random.default_rng(seed))


def _drawn(units: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    if units < 1:
        raise ValueError("expected at least one unit to draw")
    return rng.multinomial(units, np.full(units, 1 / units), resamples)


def interval(estimate: float, resampled: np.ndarray) -> dict[str, float]:
    """An estimate with the 95% percentile interval of its resampled values [B].

    Where the values leave the estimate out, as those of a gap near 0 do, the interval is widened to
    hold it.
    """
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(
        float(estimate), float(min(low, estimate)), float(max(high, estimate))
    )._asdict()


def leave_outs(units: int, groups: int = 500) -> np.ndarray:
    """Resamples that each leave out one of U units, int64 [G, U]; of many units, a group of them.

    >>> leave_outs(3).tolist()
    [[0, 1, 1], [1, 0, 1], [1, 1, 0]]

    Args:
        units: U.
        groups: the most there may be; unit u is of group u mod G.

    Raises:
        ValueError: there is only one unit.
    """
    if units < 2:
        raise ValueError("expected at least two units to leave one out")
    return (np.arange(units) % min(units, groups) != np.arange(min(units, groups))[:, None]).astype(
        np.int64
    )


def jackknife_interval(estimate: float, values: np.ndarray) -> dict[str, float]:
    """An estimate with its 95% jackknife interval, from its values [G] with one part left out each.

    The estimate lies in its middle: half its width is a standard error,
    sqrt((G - 1) / G sum_g (v_g - mean)^2), times Student's t of G - 1 degrees of freedom.
    """
    from scipy.stats import t

    parts = len(values)
    error = float(np.sqrt((parts - 1) / parts * ((values - values.mean()) ** 2).sum()))
    half = float(t.ppf(0.975, parts - 1)) * error
    return Interval(float(estimate), float(estimate) - half, float(estimate) + half)._asdict()


def percentile_of_draws(
    values: np.ndarray, percent: float, users: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """Percentile [B] of the texts of users that are drawn as by `draws`, a few resamples at a time.

    Args:
        values: [N], one a text.
        percent: from 0 to 100.
        users: [N], whom each text was written for.
        resamples: B.
        seed: of the draws.
    """
    labels, member_of = np.unique(users, return_inverse=True)
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            resampled_percentile(values, percent, _drawn(len(labels), size, rng)[:, member_of])
            for size in block_sizes(resamples, len(values)).tolist()
        ]
    )


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
