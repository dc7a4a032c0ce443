"""Popularity bias of the served lists (Abdollahpouri et al. 2019; Gini: Fleder and Hosanagar 2009).

In: lists of recommended items and the items' popularity in the train split. Out: concentration of
exposure, popularity of what is recommended, coverage, and the share of the long tail.
"""

from __future__ import annotations

import math

import numpy as np


def gini(exposure: np.ndarray) -> float:
    """Gini coefficient of exposure counts [n]: 0 if all are equal, 1 - 1/n if one item has all.

    With counts sorted ascending, x_1 <= ... <= x_n:  sum_i (2i - n - 1) x_i / (n sum_i x_i).

    >>> gini(np.array([3, 3, 3])), gini(np.array([0, 0, 9, 0]))
    (0.0, 0.75)

    Raises:
        ValueError: nothing was exposed.
    """
    counts = np.sort(np.asarray(exposure, dtype=np.float64))
    total = counts.sum()
    if total <= 0:
        raise ValueError("the Gini coefficient of no exposure is undefined")
    n = len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * counts).sum() / (n * total))


def long_tail(popularity: np.ndarray, head_share: float) -> np.ndarray:
    """Mark [n] the items outside the head: the ceil(head_share n) most popular ones.

    Equally popular items enter the head in the order of their ids.
    """
    head = math.ceil(head_share * len(popularity))
    tail = np.ones(len(popularity), dtype=bool)
    tail[np.argsort(-np.asarray(popularity), kind="stable")[:head]] = False
    return tail


def concentration(served: np.ndarray, n_items: int) -> dict[str, float]:
    """Gini of exposure and coverage: share of the catalogue that is in at least one list.

    Args:
        served: [N] items of all lists, as indices from 0.
        n_items: size of the catalogue.
    """
    exposure = np.bincount(served, minlength=n_items)
    return {"gini": gini(exposure), "coverage": float((exposure > 0).mean())}


def per_user(
    served: np.ndarray, users: np.ndarray, popularity: np.ndarray, head_share: float
) -> dict[str, np.ndarray]:
    """Mean popularity [U], and long-tail share [U], of each user's list, users ascending.

    Args:
        served: [N] items of all lists, as indices from 0.
        users: [N] whose list each of them is in.
        popularity: [n] count of every item.
        head_share: share of the catalogue that is its head.
    """
    owners = np.unique(users, return_inverse=True)[1]
    lengths = np.bincount(owners)
    values = {
        "average_popularity": np.asarray(popularity, dtype=np.float64),
        "long_tail_share": long_tail(popularity, head_share).astype(np.float64),
    }
    return {
        name: np.bincount(owners, weights=value[served]) / lengths for name, value in values.items()
    }
