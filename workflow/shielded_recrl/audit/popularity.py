"""Popularity bias of the served lists (Abdollahpouri et al. 2019; Gini: Fleder and Hosanagar 2009).

In: lists of recommended items, the items' popularity in the train split, their categories, and what
the users had before. Out: concentration of exposure, popularity of what is recommended, coverage,
the share of the long tail, and how far a list is from its user's own taste (Steck 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial.distance import jensenshannon

# Resampled exposure counts held at once: 32 MB.
BLOCK = 2**22


def gini(exposure: np.ndarray, n_items: int | None = None) -> float | np.ndarray:
    """Gini coefficient of exposure counts [..., m]: 0 if all are equal, 1 - 1/n if one has all.

    With counts sorted ascending, x_1 <= ... <= x_n:  sum_i (2i - n - 1) x_i / (n sum_i x_i).

    >>> gini(np.array([3, 3, 3])), gini(np.array([0, 0, 9, 0])), gini(np.array([9]), n_items=4)
    (0.0, 0.75, 0.75)

    Args:
        exposure: counts, catalogues along the last axis.
        n_items: n, where items without exposure were left out; None: m.

    Returns:
        A float for counts [m], else [...].

    Raises:
        ValueError: nothing was exposed.
    """
    counts = np.sort(np.asarray(exposure, dtype=np.float64), axis=-1)
    total = counts.sum(axis=-1)
    if (total <= 0).any():
        raise ValueError("the Gini coefficient of no exposure is undefined")
    n = counts.shape[-1] if n_items is None else n_items
    places = np.arange(n - counts.shape[-1] + 1, n + 1)
    values = counts @ (2.0 * places - n - 1) / (n * total)
    return values if values.ndim else float(values)


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


def resampled_concentration(
    served: np.ndarray, owners: np.ndarray, n_items: int, times: np.ndarray
) -> dict[str, np.ndarray]:
    """`concentration` of the lists of each resample of users, each [B].

    A resample that repeats lists is more concentrated than the lists themselves, the more so the
    sparser they cover the catalogue; even between two sets of lists that does not cancel. So resample
    by leaving users out (`resampling.leave_outs`), never by drawing some of them twice.

    Args:
        served: [N] items of all lists, as indices from 0.
        owners: [N] whose list each of them is in, as indices from 0.
        n_items: size of the catalogue.
        times: [B, U], how often each user counts.
    """
    items, columns = np.unique(served, return_inverse=True)
    shape = (times.shape[1], len(items))
    lists = csr_array((np.ones(len(served)), (owners, columns)), shape=shape)
    parts: dict[str, list[np.ndarray]] = {"gini": [], "coverage": []}
    for block in np.array_split(times, math.ceil(len(times) * len(items) / BLOCK)):
        exposure = (lists.T @ block.T).T
        parts["gini"].append(gini(exposure, n_items))
        parts["coverage"].append((exposure > 0).sum(axis=1) / n_items)
    return {name: np.concatenate(values) for name, values in parts.items()}


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


def category_shares(categories: Sequence[Sequence[str]]) -> csr_array:
    """Share of each category in each item, [n, C]: 1 / (number of its categories), as by Steck."""
    distinct = [sorted(set(names)) for names in categories]
    column = {name: place for place, name in enumerate(sorted(set().union(*distinct)))}
    sizes = [len(names) for names in distinct]
    entries = (
        np.repeat([1 / size if size else 0.0 for size in sizes], sizes),
        (
            np.repeat(np.arange(len(distinct)), sizes),
            np.array([column[name] for names in distinct for name in names], dtype=np.int64),
        ),
    )
    return csr_array(entries, shape=(len(distinct), len(column)))


def category_mass(
    items: np.ndarray, owners: np.ndarray, n_users: int, shares: csr_array
) -> np.ndarray:
    """Sum [U, C] of the category shares of each user's items.

    Args:
        items: [N] indices from 0.
        owners: [N] whose each of them is, as indices from 0.
        n_users: U.
        shares: of `category_shares`.
    """
    held = csr_array((np.ones(len(items)), (owners, items)), shape=(n_users, shares.shape[0]))
    return (held @ shares).toarray()


def taste_distance(listed: np.ndarray, taste: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance (base 2, from 0 to 1) between a list's categories and a user's own.

    Args:
        listed: [U, C] category mass of each user's list.
        taste: [U, C] category mass of what each user had before.

    Returns:
        [U]; nan where a list or a taste has no category.
    """
    told = (listed.sum(axis=1) > 0) & (taste.sum(axis=1) > 0)
    distance = np.full(len(listed), np.nan)
    if told.any():
        # Rounding takes the divergence of equal distributions below zero, and its root is nan.
        distance[told] = np.nan_to_num(jensenshannon(listed[told], taste[told], base=2, axis=1))
    return distance
