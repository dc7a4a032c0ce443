"""Drift: how far an adapter moved the served scores from those of the untrained adapter.

In: score matrices [U, I] before and after on the same users. Out: the figures of the study.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from shielded_recrl.ranker.metrics import ranking_metrics, top_k
from shielded_recrl.statistics import paired_bootstrap

BLOCK = 256


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
    _check(before, after, seen)
    users = [_compare(*block) for block in _blocks(before, after, seen, relevant)]
    largest, total, tau, identical, ndcg, hr = map(np.concatenate, zip(*users, strict=True))
    accuracy = dict.fromkeys(("ndcg_change", "ndcg_low", "ndcg_high", "hr_change"))
    if ndcg.size:
        interval = paired_bootstrap(ndcg, resamples, seed)
        accuracy = dict(zip(accuracy, (*interval, float(hr.mean())), strict=True))
    mean_tau = float(tau.mean())
    return {
        "users": len(before),
        "max_score_change": float(largest.max()),
        "mean_score_change": float(total.sum() / (~seen).sum()),
        "top10_identical": float(identical.mean()),
        "kendall_tau": mean_tau if np.isfinite(mean_tau) else None,
        "ndcg_users": len(ndcg),
        **accuracy,
    }


def _compare(
    before: np.ndarray, after: np.ndarray, seen: np.ndarray, relevant: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Of each user: largest and summed |score change|, Kendall tau-b, whether the top 10 is the same;
    of each with something to find: change of NDCG@10 and of HR@10."""
    change = _changes(before, after, seen)
    tau = [
        kendalltau(b[~s], a[~s], method="asymptotic").statistic
        for b, a, s in zip(before, after, seen, strict=True)
    ]
    padded = [_pad(matrix) for matrix in (before, after)]
    identical = np.equal(*(top_k(scores, _pad(seen)) for scores in padded)).all(axis=1)
    ranked = (relevant & ~seen).any(axis=1)
    masks = [_pad(mask)[ranked] for mask in (relevant, seen)]
    old, new = (ranking_metrics(scores[ranked], *masks) for scores in padded)
    sums = change.max(axis=1), change.sum(axis=1)
    return *sums, np.array(tau), identical, new.ndcg - old.ndcg, new.hr - old.hr


def largest_changes(
    before: np.ndarray, after: np.ndarray, seen: np.ndarray | None = None
) -> np.ndarray:
    """Largest |score change| of each user over unseen items [U].

    Raises:
        ValueError: there is no unseen item, a score is not finite, or shapes differ.
    """
    seen = np.zeros(before.shape, dtype=bool) if seen is None else seen
    _check(before, after, seen)
    return np.concatenate([_changes(*block).max(axis=1) for block in _blocks(before, after, seen)])


def _changes(before: np.ndarray, after: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """|score change| [U, I]; 0 at seen items."""
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("scores must be finite")
    return np.where(seen, 0.0, np.abs(after - before))


def _check(before: np.ndarray, after: np.ndarray, seen: np.ndarray) -> None:
    if before.shape != after.shape or seen.shape != before.shape:
        raise ValueError(f"shapes differ: {before.shape}, {after.shape} and the mask of seen items")
    if not before.size or seen.all():
        raise ValueError("no unseen item to compare the scores of")


def _blocks(*matrices: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The matrices some users at a time: what is worked out on the way is as large as they are."""
    for start in range(0, len(matrices[0]), BLOCK):
        yield tuple(matrix[start : start + BLOCK] for matrix in matrices)


def _pad(matrix: np.ndarray) -> np.ndarray:
    """The matrix with the padding column 0 that ranker.metrics expects."""
    return np.pad(matrix, ((0, 0), (1, 0)))
