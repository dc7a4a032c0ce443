"""Baselines: by hand, against other ways to the same numbers, and what they may look at."""

import dataclasses

import numpy as np
import pytest

from shielded_recrl.ranker import baselines
from shielded_recrl.ranker.baselines import (
    ease_weights,
    fit_baselines,
    knn_weights,
    neighbours,
    train_matrix,
)
from shielded_recrl.ranker.data import Sequences, Splits


@pytest.fixture
def small() -> Splits:
    """Train: {1, 2}, {1, 2}, {1, 3}; the third user's valid item is 2."""
    return Splits.from_sequences([[1, 2], [2, 1], [1, 3]], [[3], [3], [2]], [[4], [4], [4]], 4)


@pytest.fixture(scope="module")
def world() -> Splits:
    rng = np.random.default_rng(0)
    rows = [rng.permutation(25)[: rng.integers(4, 12)] + 1 for _ in range(80)]
    return Splits.from_sequences(
        [row[:-2] for row in rows], [row[-2:-1] for row in rows], [row[-1:] for row in rows], 25
    )


def test_cosines_by_hand(small):
    """Users of items 1 to 4: 3, 2, 1, 0; together: 1 and 2 twice, 1 and 3 once."""
    ids, cosines = neighbours(train_matrix(small), 2)
    assert (ids[1].tolist(), ids[2][0], ids[3][0]) == ([2, 3], 1, 1)
    np.testing.assert_allclose(cosines[1], [2 / 6**0.5, 1 / 3**0.5], rtol=1e-6)
    np.testing.assert_allclose(cosines[2:], [[2 / 6**0.5, 0], [1 / 3**0.5, 0], [0, 0]], rtol=1e-6)
    nearest = knn_weights(ids[:, :1], cosines[:, :1]).toarray()
    expected = np.zeros((5, 5))
    expected[1, 2] = expected[2, 1] = 2 / 6**0.5
    expected[3, 1] = 1 / 3**0.5
    np.testing.assert_allclose(nearest, expected, rtol=1e-6)


def test_knn_scores_sum_over_the_history_before_the_split(small):
    score = fit_baselines(small)["item_knn"].score
    np.testing.assert_allclose(
        score("valid")(np.array([3, 1])),
        [[0, 1 / 3**0.5, 2 / 6**0.5, 1 / 3**0.5, 0], [0, 2 / 6**0.5, 2 / 6**0.5, 1 / 3**0.5, 0]],
        rtol=1e-6,
    )
    # For test the valid item 2 is input too; the cosines stay those of train.
    np.testing.assert_allclose(
        score("test")(np.array([3])),
        [[0, 1 / 3**0.5 + 2 / 6**0.5, 2 / 6**0.5, 1 / 3**0.5, 0]],
        rtol=1e-6,
    )


def test_neighbours_agree_with_a_dense_computation(world, monkeypatch):
    x = train_matrix(world).toarray().astype(np.float64)
    together, counts = x.T @ x, x.sum(axis=0)
    cosine = together / np.sqrt(np.maximum(np.outer(counts, counts), 1))
    np.fill_diagonal(cosine, 0)
    for block in (1, 100, 2**20):
        monkeypatch.setattr(baselines, "BLOCK", block)
        ids, got = neighbours(train_matrix(world), 6)
        np.testing.assert_allclose(got, -np.sort(-cosine, axis=1)[:, :6], atol=1e-6)
        np.testing.assert_allclose(got, np.take_along_axis(cosine, ids, axis=1), atol=1e-6)


def test_ease_by_hand():
    """Users {1, 2} and {1}: X'X + 1 = [[3, 1], [1, 2]], P = [[2, -1], [-1, 3]] / 5."""
    splits = Splits.from_sequences([[1, 2], [1]], [[], []], [[], []], 2)
    x = train_matrix(splits)
    weights = ease_weights((x.T @ x).toarray(), 1.0)
    np.testing.assert_allclose(weights, [[0, 0, 0], [0, 0, 1 / 3], [0, 1 / 2, 0]], atol=1e-7)


def test_ease_is_a_ridge_regression_of_each_item_on_the_others(world):
    x = train_matrix(world).toarray().astype(np.float64)[:, 1:]
    weights = ease_weights(x.T @ x, 7.0)
    for item in range(25):
        others = np.delete(x, item, axis=1)
        ridge = np.linalg.solve(others.T @ others + 7 * np.eye(24), others.T @ x[:, item])
        np.testing.assert_allclose(np.delete(weights[:, item], item), ridge, atol=1e-6)
        assert weights[item, item] == 0


def test_a_repeated_item_counts_once():
    splits = Splits.from_sequences([[1, 2, 1], [2, 1]], [[1], [3]], [[3], [1]], 3)
    assert train_matrix(splits).toarray().tolist() == [[0] * 4, [0, 1, 1, 0], [0, 1, 1, 0]]
    score = fit_baselines(splits)["item_knn"].score("test")
    np.testing.assert_allclose(score(np.array([1])), [[0, 1, 1, 0]], rtol=1e-6)


def test_popularity_is_the_train_counts(small):
    score = fit_baselines(small)["popularity"].score
    for split in ("valid", "test"):
        assert score(split)(np.array([2, 3])).tolist() == [[0, 3, 2, 1, 0]] * 2


def test_the_test_split_has_no_say(world):
    blind = dataclasses.replace(world, test=Sequences.from_rows([[]] * (world.n_users + 1)))
    users = np.arange(1, world.n_users + 1)
    for with_test, without in zip(
        fit_baselines(world).values(), fit_baselines(blind).values(), strict=True
    ):
        assert with_test.setting == without.setting
        for split in ("valid", "test"):
            np.testing.assert_array_equal(
                with_test.score(split)(users), without.score(split)(users)
            )


def test_a_setting_is_the_best_on_valid(world, monkeypatch):
    """Alone, the chosen value gives the same scores; the others are no better on valid."""
    from shielded_recrl.ranker.evaluation import evaluate_split

    users = world.evaluable("valid")
    chosen = fit_baselines(world)["ease"]
    quality = {}
    for penalty in baselines.PENALTIES:
        monkeypatch.setattr(baselines, "PENALTIES", (penalty,))
        score = fit_baselines(world)["ease"].score("valid")
        quality[penalty] = evaluate_split(world, "valid", score, users).ndcg.mean()
    assert quality[chosen.setting["penalty"]] == max(quality.values())


def test_ease_is_left_out_of_large_catalogues(small, monkeypatch):
    assert list(fit_baselines(small)) == ["popularity", "item_knn", "ease"]
    monkeypatch.setattr(baselines, "EASE_ITEMS", 3)
    assert list(fit_baselines(small)) == ["popularity", "item_knn"]
