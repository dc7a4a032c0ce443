"""The evaluation protocol: every user of a split, the full catalogue, seen items removed.

In: the splits and any function that scores the catalogue for some users. Out: one value a user.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shielded_recrl.ranker.data import Splits
from shielded_recrl.ranker.metrics import RankingMetrics, ranking_metrics


def evaluate_split(
    splits: Splits,
    split: str,
    score: Callable[[np.ndarray], np.ndarray],
    users: np.ndarray,
    k: int = 10,
    batch_size: int = 512,
) -> RankingMetrics:
    """Metrics of each user on "valid" or "test", a batch of users at a time.

    Args:
        splits: the dataset.
        split: what to predict; everything before it is the history and is not recommended again.
        score: maps user ids [B] to scores [B, n_items+1].
        users: ids out of `splits.evaluable(split)`.
        k: cut-off.
        batch_size: users whose scores are held at once.
    """
    parts = []
    for start in range(0, len(users), batch_size):
        some = users[start : start + batch_size]
        masks = splits.relevant_mask(split, some), splits.seen_mask(split, some)
        parts.append(ranking_metrics(score(some), *masks, k))
    return RankingMetrics(*map(np.concatenate, zip(*parts, strict=True)))


def popularity_score(splits: Splits) -> Callable[[np.ndarray], np.ndarray]:
    """The baseline: every user gets the counts of the train split."""
    counts = splits.popularity().astype(np.float64)
    return lambda users: np.tile(counts, (len(users), 1))


def inner_product_score(states: np.ndarray, items: np.ndarray) -> Callable:
    """SASRec's score <state, item>, from states [n_users+1, d] and items [n_items+1, d]."""
    return lambda users: states[users] @ items.T
