"""The protocol: blocks against the whole matrix, coverage by hand, memory, and real data."""

import gzip
import tracemalloc

import numpy as np
import pytest

from shielded_recrl.ranker import evaluation
from shielded_recrl.ranker.baselines import Baseline
from shielded_recrl.ranker.data import Splits
from shielded_recrl.ranker.evaluate import compare, evaluate
from shielded_recrl.ranker.evaluation import evaluate_split, inner_product_score, rank_split
from shielded_recrl.ranker.metrics import ranking_metrics
from shielded_recrl.statistics import paired_bootstrap


def random_splits(users: int, items: int, length: int, seed: int = 0) -> Splits:
    """Users with distinct items in random order: all but the last two train, then valid, test."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(items)[:length] + 1 for _ in range(users)]
    return Splits.from_sequences(
        [row[:-4] for row in rows], [row[-4:-2] for row in rows], [row[-2:] for row in rows], items
    )


@pytest.fixture(scope="module")
def splits() -> Splits:
    return random_splits(60, 40, 12)


@pytest.fixture(scope="module")
def states() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"items": 41, "valid_users": 61, "test_users": 61}
    return {name: rng.normal(size=(n, 6)).astype(np.float32) for name, n in shapes.items()}


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_blocks_agree_with_the_whole_matrix(splits, states, batch_size):
    users = splits.evaluable("test")[::-1]
    score = inner_product_score(states["test_users"], states["items"])
    masks = splits.relevant_mask("test", users), splits.seen_mask("test", users)
    ranking = rank_split(splits, "test", score, users, batch_size=batch_size)
    assert list(ranking.metrics) == [1, 5, 10, 20]
    for k, got in ranking.metrics.items():
        for values, expected in zip(got, ranking_metrics(score(users), *masks, k), strict=True):
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    assert ranking.columns()["mrr@5"] is ranking.metrics[5].mrr


def test_coverage_by_hand():
    """13 items, two users: 2 to 11 for one, 3 to 12 for the other; 11 of 13 are listed."""
    splits = Splits.from_sequences([[1], [1]], [[2], [3]], [[], []], 13)
    first = [0, 0, *range(20, 10, -1), 0, 0]
    second = [0, 0, 0, *range(20, 10, -1), 0]
    ranking = rank_split(
        splits, "valid", lambda u: np.array([first, second])[u - 1] * 1.0, np.array([1, 2])
    )
    assert ranking.coverage == 11 / 13
    assert ranking.metrics[1].hr.tolist() == [1, 1]


def test_memory_does_not_grow_with_the_users(monkeypatch):
    """16 times the users take less than twice the memory, and far less than their scores would."""
    monkeypatch.setattr(evaluation, "BLOCK", 2**17)

    def peak(users: int) -> int:
        splits = random_splits(users, 2000, 8)
        rng = np.random.default_rng(0)
        some = rng.normal(size=(2001, 4)).astype(np.float32)
        states = rng.normal(size=(users + 1, 4)).astype(np.float32)
        tracemalloc.start()
        evaluate_split(splits, "test", inner_product_score(states, some), np.arange(1, users + 1))
        (_, most) = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(200), peak(3200)
    assert many < 2 * few
    assert many < 3200 * 2001 * 4 / 8


def test_report_of_a_split(splits, states):
    """Means, coverage and intervals are those of the parts; differences are paired."""
    users = splits.evaluable("test")
    ranker = inner_product_score(states["test_users"], states["items"])
    other = inner_product_score(states["valid_users"], states["items"])
    models = {"ranker": Baseline({}, lambda _: ranker), "other": Baseline({}, lambda _: other)}
    report = compare(splits, "test", models)
    mine, its = (evaluate_split(splits, "test", score, users) for score in (ranker, other))
    assert report["ranker"]["users"] == len(users)
    assert report["other"]["hr@10"] == its.hr.mean()
    assert report["ranker"]["intervals"]["mrr@10"] == pytest.approx(
        dict(zip(("low", "high"), paired_bootstrap(mine.mrr)[1:], strict=True))
    )
    assert report["other"]["ranker_above"] == pytest.approx(
        paired_bootstrap(mine.ndcg - its.ndcg)._asdict()
    )
    assert "ranker_above" not in report["ranker"]


def test_the_best_baseline_is_the_best_on_valid(splits, states):
    metrics = evaluate(splits, states)
    names = ["popularity", "item_knn", "ease"]
    assert metrics["best_baseline"] == max(names, key=lambda n: metrics[n]["valid"]["ndcg@10"])
    for name in names:
        assert metrics[name]["test"]["users"] == metrics["test"]["users"] == 60
        assert metrics[name]["valid"]["intervals"].keys() == metrics["valid"]["intervals"].keys()


def test_movielens_1m_against_a_loop(shared_data):
    """Popularity, full of ties: one relevant item a user, so that its rank decides everything."""
    path = shared_data / "ranking" / "sasrec_ml-1m.txt.gz"
    with gzip.open(path) as stream:
        pairs = np.loadtxt(stream, dtype=np.int64)
    rows = np.split(pairs[:, 1], np.flatnonzero(np.diff(pairs[:, 0])) + 1)
    splits = Splits.from_sequences(
        [row[:-2] for row in rows], [row[-2:-1] for row in rows], [row[-1:] for row in rows], 3416
    )
    assert len(splits.evaluable("test")) == splits.n_users == 6040
    counts = splits.popularity().astype(np.float64)
    users = splits.evaluable("test")[:1000]
    ranking = rank_split(splits, "test", lambda u: np.tile(counts, (len(u), 1)), users)
    for user, got in zip(users[:100], ranking.metrics[20].mrr, strict=False):
        past, (target,) = set(splits.history("test", user)), splits.test[user]
        rank = sum(counts[i] >= counts[target] for i in range(1, 3417) if i not in past)
        assert got == (1 / rank if rank <= 20 else 0)
