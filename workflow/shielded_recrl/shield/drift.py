"""Drift: how far an adapter moved the served scores from those of the untrained adapter.

In: score matrices [U, I] before and after on the same users. Out: the figures of the study.
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
    *,
    seen: np.ndarray | None = None,
    relevant: np.ndarray | None = None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Compare two score matrices.

    Args:
        before, after: scores [U, I].
        seen: boolean [U, I], items that are no candidates; None: every item is one.
        relevant: boolean [U, I], items to be found.
        resamples: bootstrap resamples of the NDCG interval.
        seed: seed of the bootstrap.

    Returns:
        Largest and mean |score change| over unseen items, share of users whose ordered top 10 is
        identical, mean Kendall tau-b over unseen items (None where undefined), and the mean change
        of NDCG@10 and HR@10 over the `ndcg_users` who have a relevant unseen item, the former with
        a 95% paired bootstrap interval; None where there is no such user.

    Raises:
        ValueError: there is no user or no unseen item, a score is not finite, or shapes differ.
    """
    seen = np.zeros(before.shape, dtype=bool) if seen is None else seen
    relevant = np.zeros(before.shape, dtype=bool) if relevant is None else relevant
    change = score_changes(before, after, seen)[~seen]
    taus = [
        kendalltau(b[~s], a[~s], method="asymptotic").statistic
        for b, a, s in zip(before, after, seen, strict=True)
    ]
    tau = float(np.mean(taus))
    padded = [_pad(matrix) for matrix in (before, after)]
    identical = np.equal(*(top_k(scores, _pad(seen)) for scores in padded)).all(axis=1)

    ranked = (relevant & ~seen).any(axis=1)
    accuracy = dict.fromkeys(("ndcg_change", "ndcg_low", "ndcg_high", "hr_change"))
    if ranked.any():
        masks = [_pad(mask)[ranked] for mask in (relevant, seen)]
        old, new = (ranking_metrics(scores[ranked], *masks) for scores in padded)
        ndcg = paired_bootstrap(new.ndcg - old.ndcg, resamples, seed)
        accuracy = dict(zip(accuracy, (*ndcg, float((new.hr - old.hr).mean())), strict=True))
    return {
        "users": len(before),
        "max_score_change": float(change.max()),
        "mean_score_change": float(change.mean()),
        "top10_identical": float(identical.mean()),
        "kendall_tau": tau if np.isfinite(tau) else None,
        "ndcg_users": int(ranked.sum()),
        **accuracy,
    }


def score_changes(before: np.ndarray, after: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """|score change| [U, I]; 0 at seen items.

    Raises:
        ValueError: there is no unseen item, a score is not finite, or shapes differ.
    """
    if before.shape != after.shape or (seen is not None and seen.shape != before.shape):
        raise ValueError(f"shapes differ: {before.shape}, {after.shape} and the mask of seen items")
    if not before.size or (seen is not None and seen.all()):
        raise ValueError("no unseen item to compare the scores of")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("scores must be finite")
    change = np.abs(after - before)
    return change if seen is None else np.where(seen, 0.0, change)


def _pad(matrix: np.ndarray) -> np.ndarray:
    """The matrix with the padding column 0 that ranker.metrics expects."""
    return np.pad(matrix, ((0, 0), (1, 0)))
