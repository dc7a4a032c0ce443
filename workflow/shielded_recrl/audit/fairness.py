"""Quality and exposure of the served lists by group of users.

In: lists, what their users were to find, and labels of the users. Out: means by group
(`fairlearn.metrics.MetricFrame`), the largest difference between two groups with a bootstrap
interval, and a permutation test of the labels (Good 2005).

A group is one the data tells: a column of users.parquet, or how much and how popular the things are
that a user had in the train split (Abdollahpouri et al. 2019). None is inferred from a name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LEVELS = {2: ("low", "high"), 3: ("low", "middle", "high")}
ITEM_BITS = 32


class Grouping(NamedTuple):
    """Users by group: which groups, and of which each user is; or why that cannot be told."""

    groups: tuple[str, ...]
    membership: np.ndarray  # bool [U, G]; a row without a group is left out
    reason: str | None
    left_out: dict[str, int]  # users of each group that is too small

    @property
    def members(self) -> np.ndarray:
        """Mark [U] the users who have a group."""
        return self.membership.any(axis=1)

    @property
    def labels(self) -> np.ndarray:
        """Group of each user who has one."""
        return np.array(self.groups)[self.membership[self.members].argmax(axis=1)]


def grouping(labels: list[str | None], min_group: int, absent: str) -> Grouping:
    """Group users by label; None is no group, and groups that are too small are left out.

    >>> grouping(["f", "m", None, "f", "m"], 2, "no gender").groups
    ('f', 'm')
    >>> grouping([None, None], 2, "the source tells no gender").reason
    'the source tells no gender'
    >>> grouping(["f", "m", "x", "f", "m"], 2, "no gender").left_out
    {'x': 1}

    Args:
        labels: [U], one a user.
        min_group: users below which a group is too small.
        absent: the reason to give where nobody has a label.
    """
    sizes = Counter(label for label in labels if label is not None)
    groups = tuple(sorted(name for name, users in sizes.items() if users >= min_group))
    left_out = {name: sizes[name] for name in sorted(sizes.keys() - set(groups))}
    column = np.array(labels, dtype=object)
    membership = np.zeros((len(labels), len(groups)), dtype=bool)
    for place, name in enumerate(groups):
        membership[:, place] = column == name
    reason = None
    if not sizes:
        reason = absent
    elif len(sizes) < 2:
        reason = f"all users with a label are {min(sizes)!r}"
    elif len(groups) < 2:
        reason = f"fewer than two groups have {min_group} users: " + ", ".join(
            f"{name!r} has {sizes[name]}" for name in sorted(sizes)
        )
    return Grouping(groups, membership, reason, left_out)


def quantile_labels(values: np.ndarray, groups: int) -> list[str]:
    """Levels [U] of equally many users each; users with one value are of one level.

    >>> quantile_labels(np.array([3, 1, 2, 9]), 2)
    ['high', 'low', 'low', 'high']
    """
    edges = np.quantile(values, np.arange(1, groups) / groups)
    return [LEVELS[groups][level] for level in np.searchsorted(edges, values, side="left")]


def ndcg(
    users: np.ndarray,
    items: np.ndarray,
    positions: np.ndarray,
    relevant: tuple[np.ndarray, np.ndarray],
    k: int = 10,
) -> np.ndarray:
    """NDCG at k [U] of each user's list, users ascending, as `ranker.metrics` defines it.

    Args:
        users, items, positions: [N] what stands where in whose list; position 1 is the top.
        relevant: user and item of what is to be found, each pair once.
        k: cut-off.

    Raises:
        ValueError: a user with a list has nothing to find.
    """
    ids, owners = np.unique(users, return_inverse=True)
    sizes = np.bincount(np.searchsorted(ids, relevant[0][np.isin(relevant[0], ids)]))
    n_relevant = np.pad(sizes, (0, len(ids) - len(sizes)))
    if not n_relevant.all():
        raise ValueError(f"user {ids[np.argmin(n_relevant)]} has nothing to find")
    hits = np.isin(_pairs(users, items), _pairs(*relevant)) & (positions <= k)
    gains = np.bincount(owners, weights=hits / np.log2(1 + positions))
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    return gains / ideal[np.minimum(n_relevant, k) - 1]


def exposure(users: np.ndarray, positions: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Share [U] of each list's exposure that goes to marked items, users ascending.

    Position p is seen with weight 1 / log2(1 + p) (Singh and Joachims 2018).

    Args:
        users, positions: [N] places in lists.
        marked: [N] whether the item there counts, for example as one of the long tail.
    """
    owners = np.unique(users, return_inverse=True)[1]
    seen = 1 / np.log2(1 + positions)
    return np.bincount(owners, weights=seen * marked) / np.bincount(owners, weights=seen)


def by_group(columns: Mapping[str, np.ndarray], labels: np.ndarray):
    """Fairlearn's frame of the means of columns [U] by label [U]."""
    from fairlearn.metrics import MetricFrame

    unused = np.zeros(len(labels))
    return MetricFrame(
        metrics=dict.fromkeys(columns, _mean),
        y_true=unused,
        y_pred=unused,
        sensitive_features=labels,
        sample_params={name: {"values": values} for name, values in columns.items()},
    )


def resampled_gap(values: np.ndarray, membership: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Largest difference [B] of group means in each resample of users.

    A group that a resample leaves empty counts as not there.

    Args:
        values: [U].
        membership: bool [U, G].
        times: [B, U], how often each user is drawn.
    """
    sizes = times @ membership
    with np.errstate(invalid="ignore"):
        means = times @ (values[:, None] * membership) / sizes
    low = np.where(sizes > 0, means, np.inf).min(axis=1)
    high = np.where(sizes > 0, means, -np.inf).max(axis=1)
    return np.maximum(high - low, 0.0)


def permutation_p(values: np.ndarray, labels: np.ndarray, permutations: int, seed: int) -> float:
    """P-value of the largest difference of group means if labels did not matter.

    Args:
        values: [U].
        labels: [U].
        permutations: of the labels; exact where there are no more of them.
        seed: of the permutations.
    """
    from scipy.stats import permutation_test

    samples = [values[labels == name] for name in np.unique(labels)]

    def gap(*groups: np.ndarray, axis: int) -> np.ndarray:
        return np.ptp(np.stack([group.mean(axis=axis) for group in groups]), axis=0)

    test = permutation_test(
        samples,
        gap,
        vectorized=True,
        n_resamples=permutations,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _mean(y_true: np.ndarray, y_pred: np.ndarray, values: np.ndarray) -> float:
    return float(np.mean(values))


def _pairs(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    return (users.astype(np.int64) << ITEM_BITS) + items
