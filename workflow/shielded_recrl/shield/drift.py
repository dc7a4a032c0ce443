"""Drift: how far an adapter moved the served scores from those of the untrained adapter.

In: score matrices [U, I + 1] before and after on the same users. Out: the figures of the study.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import kendalltau

from shielded_recrl.ranker.metrics import ranking_metrics, top_k
from shielded_recrl.statistics import paired_bootstrap


def drift(
    before: np.ndarray,
    after: np.ndarray,
    relevant: np.ndarray,
    seen: np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Compare two score matrices.

    Args:
        before, after: scores [U, I + 1]; column 0 is padding.
        relevant, seen: boolean masks of the same shape.
        resamples: bootstrap resamples of the NDCG interval.
        seed: seed of the bootstrap.

    Returns:
        Largest and mean |score change| over unseen items, share of users whose ordered top 10 is
        identical, mean Kendall tau-b over unseen items (None where undefined), and the mean change
        of NDCG@10 and HR@10, the former with a 95% paired bootstrap interval.
    """
    candidates = ~seen
    candidates[:, 0] = False
    change = np.abs(after - before)[candidates]
    taus = [
        kendalltau(b[c], a[c]).statistic for b, a, c in zip(before, after, candidates, strict=True)
    ]
    tau = float(np.mean(taus))
    old, new = (ranking_metrics(scores, relevant, seen) for scores in (before, after))
    ndcg = paired_bootstrap(new.ndcg - old.ndcg, resamples, seed)
    identical = (top_k(before, seen) == top_k(after, seen)).all(axis=1)
    return {
        "users": len(before),
        "max_score_change": float(change.max()),
        "mean_score_change": float(change.mean()),
        "top10_identical": float(identical.mean()),
        "kendall_tau": tau if np.isfinite(tau) else None,
        "ndcg_change": ndcg.mean,
        "ndcg_low": ndcg.low,
        "ndcg_high": ndcg.high,
        "hr_change": float((new.hr - old.hr).mean()),
    }
