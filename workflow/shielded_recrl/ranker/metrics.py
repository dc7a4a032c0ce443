"""Ranking metrics over the full catalogue, one value a user.

In: scores [U, I+1] of U users for items 1..I (column 0 is padding), and two boolean masks of the
same shape: `relevant`, the items to be found, and `seen`, the items no longer recommended. Column 0
and seen items are no candidates; a seen item is not relevant either. Out: vectors [U], so that
means, paired differences and bootstrap intervals can be made from them.

Ties count against the model: of two candidates with the same score, the one that is not relevant
comes first (Krichene and Rendle 2020 say why the full catalogue; Li et al. 2020 why the ties).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RankingMetrics(NamedTuple):
    """Metrics at a cut-off, each [U]."""

    ndcg: np.ndarray
    hr: np.ndarray
    mrr: np.ndarray

    def means(self, k: int = 10) -> dict[str, float]:
        """Means over users under their usual names, for example ``ndcg@10``."""
        return {f"{name}@{k}": float(values.mean()) for name, values in self._asdict().items()}


def candidate_scores(scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Copy of `scores` [U, I+1] with -inf at padding and seen items.

    Raises:
        ValueError: a score is not finite, or the shapes differ.
    """
    if scores.shape != seen.shape:
        raise ValueError(f"scores {scores.shape} and seen {seen.shape} differ in shape")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    candidates = np.where(seen, -np.inf, scores)
    candidates[:, 0] = -np.inf
    return candidates


def ranks(scores: np.ndarray, relevant: np.ndarray, seen: np.ndarray, k: int = 10) -> np.ndarray:
    """Ranks of each user's best relevant items, ascending, among all candidates.

    The j-th best relevant item, of score r, stands at j + (irrelevant candidates with score >= r).

    Args:
        scores: [U, I+1].
        relevant: boolean [U, I+1].
        seen: boolean [U, I+1].
        k: cut-off.

    Returns:
        Float [U, k]: 1 is the top; inf where the rank is beyond k or there is no such item.
    """
    candidates = candidate_scores(scores, seen)
    if relevant.shape != candidates.shape:
        raise ValueError(f"scores {candidates.shape} and relevant {relevant.shape} differ in shape")
    users, items = np.nonzero(relevant & np.isfinite(candidates))
    values = candidates[users, items]
    order = np.lexsort((-values, users))
    place = np.arange(len(users)) - np.searchsorted(users, users)
    hits = np.full((len(candidates), k), -np.inf)
    hits[users[place < k], place[place < k]] = values[order][place < k]
    candidates[users, items] = -np.inf
    misses = _largest(candidates, k)
    found = np.arange(1, k + 1) + (misses[:, None, :] >= hits[:, :, None]).sum(axis=-1)
    return np.where((found <= k) & np.isfinite(hits), found, np.inf)


def ranking_metrics(
    scores: np.ndarray, relevant: np.ndarray, seen: np.ndarray, k: int = 10
) -> RankingMetrics:
    """NDCG, hit rate and reciprocal rank at k of each user.

    NDCG: sum over found items of 1 / log2(1 + rank), over the same sum for ranks
    1..min(k, relevant items). Hit rate: 1 if any relevant item is in the top k. Reciprocal rank: of
    the best relevant item, 0 beyond k.

    Args:
        scores: [U, I+1].
        relevant: boolean [U, I+1], at least one unseen item a user.
        seen: boolean [U, I+1].
        k: cut-off.

    Raises:
        ValueError: a user has nothing relevant to find; leave such users out.
    """
    found = ranks(scores, relevant, seen, k)
    n_relevant = (relevant & ~seen)[:, 1:].sum(axis=1)
    if not n_relevant.all():
        raise ValueError(f"row {int(np.argmin(n_relevant))}: no relevant item among the candidates")
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    dcg = (1 / np.log2(1 + found)).sum(axis=1)
    return RankingMetrics(
        ndcg=dcg / ideal[np.minimum(n_relevant, k) - 1],
        hr=np.isfinite(found[:, 0]).astype(float),
        mrr=1 / found[:, 0],
    )


def top_k(scores: np.ndarray, seen: np.ndarray, k: int = 10) -> np.ndarray:
    """The k best candidates of each user, best first; of equal scores the smaller id first.

    Args:
        scores: [U, I+1].
        seen: boolean [U, I+1].
        k: length of a list.

    Returns:
        Item ids, int64 [U, k]; 0 at the end of a row with fewer than k candidates.
    """
    candidates = candidate_scores(scores, seen)
    kept = min(k, candidates.shape[1])
    last = _largest(candidates, kept)[:, -1:]
    above, level = candidates > last, candidates == last
    chosen = above | (level & (level.cumsum(axis=1) <= kept - above.sum(axis=1, keepdims=True)))
    items = np.nonzero(chosen)[1].reshape(len(candidates), kept)
    values = np.take_along_axis(candidates, items, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    values, items = (np.take_along_axis(array, order, axis=1) for array in (values, items))
    lists = np.zeros((len(candidates), k), dtype=np.int64)
    lists[:, :kept] = np.where(np.isfinite(values), items, 0)
    return lists


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest values of each row, descending, [U, k]; -inf where a row is shorter."""
    kept = min(k, values.shape[1])
    top = -np.sort(-np.partition(values, -kept, axis=1)[:, -kept:], axis=1)
    return np.pad(top, ((0, 0), (0, k - kept)), constant_values=-np.inf)
