"""Calibration of click probabilities: reliability bins and expected calibration error.

    ECE = sum over bins b of (n_b / N) |observed(b) - predicted(b)|

over bins of equal width (Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017). In: predicted P(click)
and observed click rates. Out: bins and ECE. The expected error of a finite sample is above 0 even
where every probability is right: the simulator's own probability, beside it, is that floor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shielded_recrl.statistics import bootstrap


def bin_of(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """Bin [n] from 0 of each probability in [0, 1]; a bin holds its upper edge, the first both.

    Raises:
        ValueError: a number is no probability.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)


def reliability(
    probabilities: np.ndarray, rates: np.ndarray, sessions: int, bins: int
) -> list[dict[str, float | int]]:
    """Mean predicted P(click), observed click rate and number of sessions of each non-empty bin.

    Args:
        probabilities: predicted, [n].
        rates: share of sessions with a click, [n].
        sessions: of each text.
        bins: of equal width.
    """
    places = bin_of(probabilities, bins)
    rows = []
    for place in np.unique(places):
        chosen = places == place
        rows.append(
            {
                "predicted": float(np.mean(np.asarray(probabilities)[chosen])),
                "observed": float(np.mean(np.asarray(rates)[chosen])),
                "count": int(chosen.sum()) * sessions,
            }
        )
    return rows


def calibration_report(
    probabilities: np.ndarray,
    rates: np.ndarray,
    users: np.ndarray,
    sessions: int,
    bins: int,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """ECE with a user-clustered 95% bootstrap interval, and the reliability bins.

    Args:
        probabilities: predicted, [n].
        rates: share of sessions with a click, [n].
        users: of each text.
        sessions: of each text.
        bins: of equal width.
        resamples: of the bootstrap; whole users are drawn. A resample is noisier than the sample,
            so its errors are larger: the interval may lie above the estimate.
        seed: of the bootstrap.
    """
    probabilities, rates = (np.asarray(part, dtype=np.float64) for part in (probabilities, rates))
    inside = bin_of(probabilities, bins)[:, None] == np.arange(bins)
    columns = np.column_stack([inside * (probabilities - rates)[:, None], np.ones(len(rates))])
    error = bootstrap(
        columns, lambda s: np.abs(s[..., :-1]).sum(axis=-1) / s[..., -1], resamples, seed, users
    )
    return {
        "ece": error.mean,
        "ece_low": error.low,
        "ece_high": error.high,
        "bins": reliability(probabilities, rates, sessions, bins),
    }
