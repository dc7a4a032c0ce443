"""Metrics of the recommender: by hand, against ir-measures and scikit-learn, and their intervals."""

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, Success, nDCG
from sklearn.metrics import roc_auc_score

from shielded_recrl.dialogue.recommender.metrics import (
    CUTOFFS,
    Ranked,
    auc,
    clustered_means,
    columns,
    differences,
    measure,
    rank_of,
)
from shielded_recrl.statistics import paired_bootstrap

ONE_EACH = np.arange(1000)


def test_a_rank_counts_what_scores_no_less():
    scores = np.array([99.0, 0.5, 0.9, 0.5, 0.1])
    assert rank_of(scores, 2) == 1
    assert rank_of(scores, 1) == 3, "item 3 has the same score and comes first"
    assert rank_of(scores, 1, barred=[2, 3]) == 1
    assert rank_of(np.full(31, 2.0), 7) == 30, "a constant score finds nothing"


@pytest.mark.parametrize(
    ("item", "barred", "score"), [(0, [], 1.0), (1, [1], 1.0), (1, [], np.nan), (1, [], -np.inf)]
)
def test_no_rank_for_what_is_no_candidate(item, barred, score):
    with pytest.raises(ValueError, match="no candidate"):
        rank_of(np.array([0.0, score, 2.0]), item, barred)


def test_a_rank_by_hand():
    found = columns(np.array([1, 3, 10, 11, 51]))
    np.testing.assert_array_equal(found["recall@1"], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found["recall@10"], [1, 1, 1, 0, 0])
    np.testing.assert_allclose(found["mrr@10"], [1, 1 / 3, 1 / 10, 0, 0])
    np.testing.assert_allclose(found["ndcg@50"], [1, 1 / 2, 1 / np.log2(11), 1 / np.log2(12), 0])


def test_agrees_with_ir_measures_without_ties():
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(81.0), (60, 1)), axis=1)
    items = rng.integers(1, 81, size=60)
    found = columns(np.array([rank_of(row, item) for row, item in zip(scores, items, strict=True)]))
    wanted = [ir_measures.Qrel(str(q), str(item), 1) for q, item in enumerate(items)]
    run = [
        ir_measures.ScoredDoc(str(q), str(item), scores[q, item])
        for q in range(60)
        for item in range(1, 81)
    ]
    for k in CUTOFFS:
        # One item is to be found: recall is success.
        for name, peer in (("recall", Success @ k), ("ndcg", nDCG @ k), ("mrr", RR @ k)):
            values = {row.query_id: row.value for row in ir_measures.iter_calc([peer], wanted, run)}
            np.testing.assert_allclose(
                found[f"{name}@{k}"], [values[str(q)] for q in range(60)], atol=1e-9
            )


def test_auc_is_over_all_pairs_with_ties_counting_half():
    scores, liked = np.array([3.0, 1.0, 2.0, 2.0, 9.0]), np.array([1, 0, 0, 1, 2])
    # Liked 3 and 2 against disliked 1 and 2: 1 + 1 + 1 + 1/2 of four pairs.
    assert auc(scores, liked, np.arange(5), resamples=10).mean == 3.5 / 4


def test_auc_agrees_with_scikit_learn_and_its_interval_draws_dialogues():
    rng = np.random.default_rng(0)
    liked = rng.choice([0, 1, 2], size=400)
    scores = np.round(rng.normal(size=400) + 0.7 * (liked == 1), 1)
    known = liked < 2
    alone = auc(scores, liked, np.arange(400), resamples=400)
    assert alone.mean == pytest.approx(roc_auc_score(liked[known], scores[known]), abs=1e-12)
    assert alone.low < alone.mean < alone.high
    # The same targets eight times over in a dialogue each say no more than once.
    rows = np.repeat(np.arange(400), 8)
    again = auc(scores[rows], liked[rows], rows, resamples=400)
    naive = auc(scores[rows], liked[rows], np.arange(3200), resamples=400)
    assert again.high - again.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    assert naive.high - naive.low < 0.5 * (again.high - again.low)


def test_no_auc_of_one_kind():
    assert auc(np.arange(3.0), np.array([1, 1, 2]), np.arange(3), resamples=10) is None


def test_clustered_means_are_those_of_the_paired_bootstrap():
    rng = np.random.default_rng(1)
    values, clusters = rng.random((90, 3)), rng.integers(20, size=90)
    for column, interval in zip(values.T, clustered_means(values, clusters, 500), strict=True):
        np.testing.assert_allclose(interval, paired_bootstrap(column, 500, 0, clusters), rtol=1e-12)


def test_recall_true_is_over_the_liked_alone():
    ranks, liked = np.array([1, 99, 2, 99]), np.array([1, 1, 0, 2])
    found = measure(Ranked(ranks, -ranks.astype(float)), liked, np.arange(4), resamples=50)
    assert found["recall@10"]["mean"] == 0.5
    assert found["recall_true@10"]["mean"] == 0.5
    assert found["recall_true@1"]["mean"] == 0.5
    nobody = measure(Ranked(ranks, ranks * 1.0), np.full(4, 2), np.arange(4), 50)
    assert nobody["recall_true@10"] is None
    assert nobody["auc"] is None


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, 100, size=1000)
    ours, theirs = Ranked(ranks, ranks * 1.0), Ranked(ranks + (ONE_EACH % 20 == 0), ranks * 1.0)
    liked = ONE_EACH % 3
    found = differences(ours, theirs, liked, ONE_EACH, 500)
    assert 0 < found["mrr@50"]["low"] < found["mrr@50"]["mean"] < found["mrr@50"]["high"]
    true = (ranks <= 10).astype(float) - (theirs.ranks <= 10)
    assert found["recall_true@10"]["mean"] == pytest.approx(true[liked == 1].mean())
    same = differences(ours, ours, liked, ONE_EACH, 500)["recall@10"]
    assert same == {"mean": 0.0, "low": 0.0, "high": 0.0}
