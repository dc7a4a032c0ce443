"""The evaluation protocol: every user of a split, the full catalogue, seen items removed.

In: the splits and any function that scores the catalogue for some users. Out: one value a user.
Users are scored a block at a time: the block's scores are the largest array there is, so that memory
grows neither with the number of users nor with users x items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from shielded_recrl.ranker.data import Splits
from shielded_recrl.ranker.metrics import RankingMetrics, find

# Maps user ids [B] to scores [B, n_items+1]: a new array each time, since it is written to.
Score = Callable[[np.ndarray], np.ndarray]

CUTOFFS = (1, 5, 10, 20)
# Length of the lists whose coverage is measured.
LISTED = 10
# Scores held at once; more are no faster, and soon no longer fit a processor's cache.
BLOCK = 2**20


class Ranking(NamedTuple):
    """How a model ranks a split: metrics of each user by cut-off, and what it ever lists."""

    metrics: dict[int, RankingMetrics]
    coverage: float  # share of the catalogue in at least one user's top 10

    def columns(self) -> dict[str, np.ndarray]:
        """Every metric under its usual name, for example ``ndcg@10``: one value a user."""
        return {
            f"{name}@{k}": values
            for k, metrics in self.metrics.items()
            for name, values in metrics._asdict().items()
        }


def rank_split(
    splits: Splits,
    split: str,
    score: Score,
    users: np.ndarray,
    cutoffs: tuple[int, ...] = CUTOFFS,
    batch_size: int | None = None,
) -> Ranking:
    """Rank the catalogue for each user in one pass.

    Args:
        splits: the dataset.
        split: "valid" or "test"; everything before it is the history and is not recommended again.
        score: the model.
        users: ids out of `splits.evaluable(split)`, at least one.
        cutoffs: list lengths to measure at.
        batch_size: users whose scores are held at once; None: as many as make a block.
    """
    size = batch_size or max(1, BLOCK // (splits.n_items + 1))
    listed = np.zeros(splits.n_items + 1, dtype=bool)
    parts = []
    for start in range(0, len(users), size):
        some = users[start : start + size]
        relevant, seen = getattr(splits, split).pairs(some), splits.seen_pairs(split, some)
        found = find(score(some), relevant, seen, max(*cutoffs, LISTED))
        listed[found.lists[:, :LISTED]] = True
        parts.append([found.metrics(k) for k in cutoffs])
    metrics = {
        k: RankingMetrics(*map(np.concatenate, zip(*at_k, strict=True)))
        for k, at_k in zip(cutoffs, zip(*parts, strict=True), strict=True)
    }
    return Ranking(metrics, float(listed[1:].mean()))


def evaluate_split(
    splits: Splits,
    split: str,
    score: Score,
    users: np.ndarray,
    k: int = 10,
    batch_size: int | None = None,
) -> RankingMetrics:
    """Metrics of each user at one cut-off; see `rank_split`."""
    return rank_split(splits, split, score, users, (k,), batch_size).metrics[k]


def inner_product_score(states: np.ndarray, items: np.ndarray) -> Score:
    """SASRec's score <state, item>, from states [n_users+1, d] and items [n_items+1, d]."""
    return lambda users: states[users] @ items.T
