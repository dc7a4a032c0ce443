"""Ranking metrics over the full catalogue, one value a user.

In: scores [U, I+1] of U users for items 1..I (column 0 is padding), and what each user had already
(`seen`, no longer recommended) and is to find (`relevant`), as boolean masks of the same shape or as
pairs of indices. Column 0 and seen items are no candidates; a seen item is not relevant either.
Out: ranks and vectors [U], so that means, paired differences and bootstrap intervals can be made
from them.

Ties count against the model: of two candidates with the same score, the one that is not relevant
comes first (Krichene and Rendle 2020 say why the full catalogue; Li et al. 2020 why the ties).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

Pairs = tuple[np.ndarray, np.ndarray]


class RankingMetrics(NamedTuple):
    """Metrics at a cut-off, each [U]."""

    ndcg: np.ndarray
    hr: np.ndarray
    mrr: np.ndarray

    def means(self, k: int = 10) -> dict[str, float]:
        """Means over users under their usual names, for example ``ndcg@10``."""
        return {f"{name}@{k}": float(values.mean()) for name, values in self._asdict().items()}


class Found(NamedTuple):
    """Where each user's relevant items stand, up to rank k, and what stands at each rank."""

    ranks: np.ndarray  # float32 [U, k], ascending; inf where there is no further item up to rank k
    n_relevant: np.ndarray  # int64 [U], relevant items among the candidates
    lists: np.ndarray  # int64 [U, k], item ids by rank; 0 where there are fewer candidates

    def metrics(self, k: int) -> RankingMetrics:
        """NDCG, hit rate and reciprocal rank at a cut-off of at most the ranks' k.

        NDCG: sum over found items of 1 / log2(1 + rank), over the same sum for ranks
        1..min(k, relevant items). Hit rate: 1 if any relevant item is in the top k. Reciprocal
        rank: of the best relevant item, 0 beyond k.

        Raises:
            ValueError: a user has nothing relevant to find; leave such users out.
        """
        if not self.n_relevant.all():
            row = int(np.argmin(self.n_relevant))
            raise ValueError(f"row {row}: no relevant item among the candidates")
        ranks = np.where(self.ranks <= k, self.ranks, np.inf).astype(np.float64)
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
        return RankingMetrics(
            ndcg=(1 / np.log2(1 + ranks)).sum(axis=1) / ideal[np.minimum(self.n_relevant, k) - 1],
            hr=np.isfinite(ranks[:, 0]).astype(float),
            mrr=1 / ranks[:, 0],
        )


def find(scores: np.ndarray, relevant: Pairs, seen: Pairs, k: int) -> Found:
    """Rank the candidates of each user.

    The j-th best relevant item, of score r, stands at j + (irrelevant candidates with score >= r),
    so only the k best irrelevant ones have to be known. Which of several irrelevant items with one
    score is listed first is left open.

    Args:
        scores: [U, I+1], floating point; overwritten.
        relevant: row and item of what is to be found, in any order, repeated or not.
        seen: row and item of what is no candidate.
        k: largest rank of interest.

    Raises:
        ValueError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    scores[:, 0] = -np.inf
    scores[seen] = -np.inf
    rows, items = np.divmod(np.unique(relevant[0] * scores.shape[1] + relevant[1]), scores.shape[1])
    values = scores[rows, items]
    scores[rows, items] = -np.inf
    new = values > -np.inf
    rows, items, values = rows[new], items[new], values[new]
    n_relevant = np.bincount(rows, minlength=len(scores))

    width = min(k, scores.shape[1])
    top = torch.topk(torch.from_numpy(scores), width, dim=1)
    misses = np.full((len(scores), k), -np.inf, dtype=scores.dtype)
    misses[:, :width] = top.values
    order = np.lexsort((-values, rows))
    rows, items, values = rows[order], items[order], values[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    rank = place + 1 + (misses[rows] >= values[:, None]).sum(axis=1)
    hit = rank <= k
    rows, items, place, rank = rows[hit], items[hit], place[hit], rank[hit]

    ranks = np.full((len(scores), k), np.inf, dtype=np.float32)
    ranks[rows, place] = rank
    lists = np.zeros((len(scores), k), dtype=np.int64)
    lists[rows, rank - 1] = items
    fill = np.zeros_like(lists)
    fill[:, :width] = np.where(top.values > -torch.inf, top.indices, 0)
    lists[lists == 0] = fill[np.arange(k) < k - np.isfinite(ranks).sum(axis=1)[:, None]]
    return Found(ranks, n_relevant, lists)


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

    Args:
        scores: [U, I+1].
        relevant: boolean [U, I+1].
        seen: boolean [U, I+1].
        k: cut-off.

    Returns:
        Float [U, k]: 1 is the top; inf where the rank is beyond k or there is no such item.
    """
    return _find_masked(scores, relevant, seen, k).ranks


def ranking_metrics(
    scores: np.ndarray, relevant: np.ndarray, seen: np.ndarray, k: int = 10
) -> RankingMetrics:
    """NDCG, hit rate and reciprocal rank at k of each user; see `Found.metrics`.

    Args:
        scores: [U, I+1].
        relevant: boolean [U, I+1], at least one unseen item a user.
        seen: boolean [U, I+1].
        k: cut-off.

    Raises:
        ValueError: a user has nothing relevant to find; leave such users out.
    """
    return _find_masked(scores, relevant, seen, k).metrics(k)


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


def _find_masked(scores: np.ndarray, relevant: np.ndarray, seen: np.ndarray, k: int) -> Found:
    for name, mask in (("relevant", relevant), ("seen", seen)):
        if scores.shape != mask.shape:
            raise ValueError(f"scores {scores.shape} and {name} {mask.shape} differ in shape")
    copy = np.array(scores, dtype=np.result_type(scores, np.float32))
    return find(copy, np.nonzero(relevant), np.nonzero(seen), k)


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest values of each row, descending, [U, k]; -inf where a row is shorter."""
    kept = min(k, values.shape[1])
    top = -np.sort(-np.partition(values, -kept, axis=1)[:, -kept:], axis=1)
    return np.pad(top, ((0, 0), (0, k - kept)), constant_values=-np.inf)
