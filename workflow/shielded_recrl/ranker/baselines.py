"""What the ranker has to beat: popularity, item-kNN and EASE, under the same protocol.

In: the splits. Out: baselines by name, fitted on the train split; a setting with more than one value
is chosen by NDCG@10 on the valid split. With X [U, I] the binary train matrix, x_u the history of u
before the split (for test also the valid items), and none of them reading the order of a history:

    popularity      score(u, i) = users of item i in train
    item-kNN        score(u, i) = sum over j in x_u, i among the k items most similar to j, of cos(j, i)
                    cos(j, i) = |U_j and U_i| / sqrt(|U_j| |U_i|)          (Deshpande and Karypis 2004)
    EASE            score(u, .) = x_u B;  B_ij = -P_ij / P_jj, B_jj = 0, P = (X'X + penalty 1)^-1
                                                                                         (Steck 2019)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from shielded_recrl.ranker.data import Splits
from shielded_recrl.ranker.evaluation import BLOCK, Score, evaluate_split

NEIGHBOURS = (5, 20, 100, 500)
PENALTIES = (5.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
# EASE inverts a matrix of items x items: above this many it would take minutes and gigabytes.
EASE_ITEMS = 5000


class Baseline(NamedTuple):
    """A fitted baseline."""

    setting: dict[str, float]  # what was chosen on the valid split
    score: Callable[[str], Score]  # by split: "valid" or "test"


def fit_baselines(splits: Splits) -> dict[str, Baseline]:
    """Every baseline by name; EASE only up to `EASE_ITEMS` items."""
    train = train_matrix(splits)
    counts = splits.popularity().astype(np.float64)
    ids, similarities = neighbours(train, min(max(NEIGHBOURS), splits.n_items))
    baselines = {
        "popularity": Baseline({}, lambda _: lambda users: np.tile(counts, (len(users), 1))),
        "item_knn": _best(
            splits,
            (
                Baseline(
                    {"neighbours": k}, _linear(splits, knn_weights(ids[:, :k], similarities[:, :k]))
                )
                for k in NEIGHBOURS
            ),
        ),
    }
    if splits.n_items <= EASE_ITEMS:
        gram = (train.T @ train).toarray()
        baselines["ease"] = _best(
            splits,
            (
                Baseline({"penalty": penalty}, _linear(splits, ease_weights(gram, penalty)))
                for penalty in PENALTIES
            ),
        )
    return baselines


def train_matrix(splits: Splits) -> csr_array:
    """X: 1 where a user has an item in train, float32 [n_users+1, n_items+1]."""
    values = np.ones(len(splits.train.items), dtype=np.float32)
    return _binary(
        csr_array(
            (values, splits.train.items, splits.train.offsets),
            shape=(splits.n_users + 1, splits.n_items + 1),
            copy=True,
        )
    )


def neighbours(train: csr_array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k items most similar to each item by cosine, most similar first, a block at a time.

    Args:
        train: X [U, I+1].
        k: neighbours of an item; not itself.

    Returns:
        Item ids, int64 [I+1, k], and their cosines, float32 [I+1, k].
    """
    width = train.shape[1]
    norms = np.sqrt(np.maximum(train.sum(axis=0), 1)).astype(np.float32)
    unit = csr_array((train.data / norms[train.indices], train.indices, train.indptr), train.shape)
    rows = unit.T.tocsr()
    size = max(1, BLOCK // width)
    ids = np.empty((width, k), dtype=np.int64)
    similarities = np.empty((width, k), dtype=np.float32)
    for start in range(0, width, size):
        some = np.arange(start, min(start + size, width))
        block = (rows[some] @ unit).toarray()
        block[some - start, some] = 0
        similarities[some], ids[some] = (
            part.numpy() for part in torch.topk(torch.from_numpy(block), k, dim=1)
        )
    return ids, similarities


def knn_weights(ids: np.ndarray, similarities: np.ndarray) -> csr_array:
    """Sparse [I+1, I+1] out of `neighbours`: row j holds the cosines of j's neighbours."""
    width, k = ids.shape
    offsets = np.arange(0, width * k + 1, k)
    weights = csr_array((similarities.ravel(), ids.ravel(), offsets), shape=(width, width))
    weights.eliminate_zeros()
    return weights


def ease_weights(gram: np.ndarray, penalty: float) -> np.ndarray:
    """B, float32 [I+1, I+1].

    Args:
        gram: X'X [I+1, I+1].
        penalty: L2 penalty, above 0.
    """
    inverse = np.linalg.inv(gram.astype(np.float64) + penalty * np.eye(len(gram)))
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return weights


def _linear(splits: Splits, weights: np.ndarray | csr_array) -> Callable[[str], Score]:
    """Score <x_u, column i of weights>, for each split."""

    def by_split(split: str) -> Score:
        def score(users: np.ndarray) -> np.ndarray:
            rows, items = splits.seen_pairs(split, users)
            values = np.ones(len(rows), dtype=np.float32)
            shape = (len(users), splits.n_items + 1)
            scores = _binary(csr_array((values, (rows, items)), shape=shape)) @ weights
            return scores if isinstance(scores, np.ndarray) else scores.toarray()

        return score

    return by_split


def _binary(matrix: csr_array) -> csr_array:
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _best(splits: Splits, candidates: Iterable[Baseline]) -> Baseline:
    users = splits.evaluable("valid")

    def ndcg(candidate: Baseline) -> float:
        return evaluate_split(splits, "valid", candidate.score("valid"), users).ndcg.mean()

    return max(candidates, key=ndcg)
