"""How well films are ranked that the recommender named: every metric with an interval.

In: the rank of each target among the candidates and its score. Out: means over targets, with 95%
percentile intervals of a bootstrap that draws whole dialogues, because the targets of one dialogue
are not independent.

One film is to be found for each target, so at a cut-off k, with r its rank:

    recall        1 if r <= k
    ndcg          1 / log2(1 + r) if r <= k
    mrr           1 / r if r <= k
    recall_true   recall, over the targets that the seeker liked
    auc           chance that a target that was liked scores above one that was disliked, a tie
                  counting half: over all pairs of the whole set, not batch by batch
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shielded_recrl.dialogue.corpus.dialogues import DISLIKED, LIKED
from shielded_recrl.statistics import Interval, block_sizes

CUTOFFS = (1, 10, 50)


class Ranked(NamedTuple):
    """A system's answer to the targets [T] of a group.

    Attributes:
        ranks: of each target among its candidates, from 1.
        scores: of each target, comparable between contexts.
    """

    ranks: np.ndarray
    scores: np.ndarray

    def rows(self, some: np.ndarray) -> Ranked:
        """Those of some targets."""
        return Ranked(self.ranks[some], self.scores[some])


def rank_of(scores: np.ndarray, item: int, barred: Sequence[int] = ()) -> int:
    """Rank of an item; ties count against it.

    >>> rank_of(np.array([9.0, 3.0, 3.0, 1.0, 5.0]), 1, barred=[4])
    2

    Args:
        scores: [I+1]; that of padding, item 0, is not looked at.
        item: the item.
        barred: items that are no candidates; not the item itself.

    Raises:
        ValueError: the item is no candidate, or its score is no number.
    """
    if item < 1 or item in barred or not np.isfinite(scores[item]):
        raise ValueError(f"item {item} is no candidate, or its score is no number")
    above = scores >= scores[item]
    above[0] = False
    above[list(barred)] = False
    return int(above.sum())


def columns(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Recall, NDCG and MRR of each target at every cut-off, by name: ``recall@10``."""
    ranks = np.asarray(ranks, dtype=np.float64)
    return {
        f"{name}@{k}": np.where(ranks <= k, gain, 0.0)
        for name, gain in (
            ("recall", np.ones_like(ranks)),
            ("ndcg", 1 / np.log2(1 + ranks)),
            ("mrr", 1 / ranks),
        )
        for k in CUTOFFS
    }


def auc(
    scores: np.ndarray,
    liked: np.ndarray,
    clusters: np.ndarray,
    resamples: int,
    seed: int = 0,
) -> Interval | None:
    """Area under the ROC curve of liked against disliked targets.

    Args:
        scores: [T].
        liked: [T], 1 liked, 0 disliked; others are left out.
        clusters: [T] dialogues.
        resamples: of the bootstrap; a resample with one kind alone is left out.
        seed: of the draws.

    Returns:
        None where there are no two kinds to tell apart.
    """
    kept = (liked == LIKED) | (liked == DISLIKED)
    good = liked[kept] == LIKED
    if good.all() or not good.any():
        return None
    _, dialogue = np.unique(clusters[kept], return_inverse=True)
    _, place = np.unique(scores[kept], return_inverse=True)

    def area(times: np.ndarray) -> float:
        weights = times[dialogue].astype(np.float64)
        above, below = (
            np.bincount(place, weights * some, minlength=place.max() + 1) for some in (good, ~good)
        )
        pairs = above.sum() * below.sum()
        wins = above @ (np.cumsum(below) - below / 2)
        return wins / pairs if pairs else np.nan

    rng = np.random.default_rng(seed)
    units = dialogue.max() + 1
    drawn = [
        area(np.bincount(rng.integers(units, size=units), minlength=units))
        for _ in range(resamples)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(float(area(np.ones(units, dtype=int))), float(low), float(high))


def clustered_means(
    columns: np.ndarray, clusters: np.ndarray, resamples: int, seed: int = 0
) -> list[Interval]:
    """Mean of each column of [T, C] with its interval, clusters drawn once for all columns.

    The same draws, and so the same intervals, as `statistics.paired_bootstrap` of each column
    alone, for the price of one.

    Raises:
        ValueError: there is no row, or a number is not finite.
    """
    columns = np.asarray(columns, dtype=np.float64)
    if columns.ndim != 2 or not len(columns) or not np.isfinite(columns).all():
        raise ValueError(f"expected finite columns [targets, C], got shape {columns.shape}")
    labels, member_of = np.unique(clusters, return_inverse=True)
    units = len(labels)
    sums = np.zeros((units, columns.shape[1] + 1))
    np.add.at(sums, member_of, np.column_stack([columns, np.ones(len(columns))]))
    rng = np.random.default_rng(seed)
    means = []
    for size in block_sizes(resamples, units):
        drawn = rng.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
        totals = times @ sums
        means.append(totals[:, :-1] / totals[:, -1:])
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return [
        Interval(*map(float, values)) for values in zip(columns.mean(0), low, high, strict=True)
    ]


def measure(
    ranked: Ranked, liked: np.ndarray, clusters: np.ndarray, resamples: int
) -> dict[str, Any]:
    """Every metric of one system over some targets: name -> mean, low, high; or None.

    Args:
        ranked: ranks and scores [T].
        liked: [T], 1 liked, 0 disliked, 2 not said.
        clusters: [T] dialogues.
        resamples: of the bootstrap.
    """
    if not len(ranked.ranks):
        return {}
    metrics = _means(columns(ranked.ranks), liked, clusters, resamples)
    metrics["auc"] = auc(ranked.scores, liked, clusters, resamples)
    return {name: value and value._asdict() for name, value in metrics.items()}


def differences(
    ranked: Ranked, other: Ranked, liked: np.ndarray, clusters: np.ndarray, resamples: int
) -> dict[str, Any]:
    """Mean of each metric's paired difference, `ranked` minus `other`, over the same targets.

    All metrics of `measure` but AUC, which is no mean over targets.
    """
    if not len(ranked.ranks):
        return {}
    ours, theirs = columns(ranked.ranks), columns(other.ranks)
    metrics = _means({name: ours[name] - theirs[name] for name in ours}, liked, clusters, resamples)
    return {name: value and value._asdict() for name, value in metrics.items()}


def _means(
    found: dict[str, np.ndarray], liked: np.ndarray, clusters: np.ndarray, resamples: int
) -> dict[str, Interval | None]:
    """Means of columns [T], and as `recall_true` of those of recall over the liked, if any are."""
    means: dict[str, Interval | None] = dict(
        zip(found, clustered_means(_stack(found), clusters, resamples), strict=True)
    )
    recalls = {name: values for name, values in found.items() if name.startswith("recall")}
    true = liked == LIKED
    of_true = (
        clustered_means(_stack(recalls)[true], clusters[true], resamples)
        if true.any()
        else [None] * len(recalls)
    )
    for name, interval in zip(recalls, of_true, strict=True):
        means[name.replace("recall", "recall_true")] = interval
    return means


def _stack(found: dict[str, np.ndarray]) -> np.ndarray:
    return np.stack(list(found.values()), axis=-1)
