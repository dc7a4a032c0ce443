"""Ranking metrics: by hand, against ir-measures, and their invariants."""

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Success, nDCG

from shielded_recrl.ranker.metrics import candidate_scores, find, ranking_metrics, ranks, top_k


def mask(n_items: int, *items: int) -> np.ndarray:
    row = np.zeros((1, n_items + 1), dtype=bool)
    row[0, list(items)] = True
    return row


EMPTY = np.empty(0, dtype=np.int64)


@st.composite
def worlds(draw, levels: int | None = None):
    """Scores of 4 users over 1 to 14 items (few levels: many ties), with both masks."""
    n_items = draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (4, n_items + 1)
    if levels:
        scores = rng.integers(levels, size=shape).astype(np.float32)
    else:
        scores = rng.permuted(np.tile(np.linspace(-1, 1, n_items + 1), (4, 1)), axis=1)
    relevant, seen = rng.random(shape) < 0.4, rng.random(shape) < 0.3
    one = rng.integers(1, n_items + 1, size=4)
    relevant[np.arange(4), one], seen[np.arange(4), one] = True, False
    return scores, relevant, seen, draw(st.integers(1, 12))


def test_two_relevant_items_by_hand():
    scores = np.array([[9.0, 0.9, 0.8, 0.7, 0.6, 0.5]])
    metrics = ranking_metrics(scores, mask(5, 2, 4), mask(5), k=3)
    # Found at rank 2; the second is at 4, beyond the cut-off. Ideal: ranks 1 and 2.
    assert metrics.ndcg[0] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)), abs=1e-12)
    assert (metrics.hr[0], metrics.mrr[0]) == (1, 0.5)
    np.testing.assert_array_equal(ranks(scores, mask(5, 2, 4), mask(5), 4), [[2, 4, *[np.inf] * 2]])


def test_more_relevant_items_than_the_list_is_long_can_still_be_perfect():
    scores = np.array([[0.0, 4, 3, 2, 1]])
    assert ranking_metrics(scores, mask(4, 1, 2, 3), mask(4), k=2).ndcg[0] == pytest.approx(1)


def test_ties_count_against_the_model():
    scores = np.array([[0.0, 1, 1, 1, 0, 1]])
    np.testing.assert_array_equal(ranks(scores, mask(5, 1), mask(5), 4), [[4, *[np.inf] * 3]])
    # Tied relevant items do not push each other out: after two irrelevant ones come ranks 3 and 4.
    np.testing.assert_array_equal(ranks(scores, mask(5, 1, 5), mask(5), 4), [[3, 4, *[np.inf] * 2]])
    constant = ranking_metrics(np.zeros((1, 31)), mask(30, 1), mask(30))
    assert (constant.ndcg[0], constant.hr[0], constant.mrr[0]) == (0, 0, 0)


def test_ties_at_every_cut_off_by_hand():
    """Items 1 and 5 are wanted and tied with 2 and 3: 2, 3, 1, 5, then 4."""
    found = find(
        np.array([[0.0, 1, 1, 1, 0, 1]]), (np.zeros(2, int), np.array([5, 1])), (EMPTY, EMPTY), 5
    )
    assert found.ranks[0, :2].tolist() == [3, 4]
    assert sorted(found.lists[0, :2]) == [2, 3]
    assert sorted(found.lists[0, 2:4]) == [1, 5]
    assert found.lists[0, 4] == 4
    discounts = 1 / np.log2([4, 5])
    ideal = 1 + 1 / np.log2(3)
    expected = {1: (0, 0, 0), 2: (0, 0, 0), 3: (discounts[0] / ideal, 1, 1 / 3)}
    expected |= dict.fromkeys((4, 5), (discounts.sum() / ideal, 1, 1 / 3))
    for k, values in expected.items():
        got = found.metrics(k)
        assert [got.ndcg[0], got.hr[0], got.mrr[0]] == pytest.approx(values, abs=1e-12)


def test_padding_and_seen_items_are_no_candidates():
    scores = np.array([[9.0, 5, 4, 3]])
    assert ranks(scores, mask(3, 3), mask(3, 1, 2), 1)[0, 0] == 1
    assert top_k(scores, mask(3, 2), 5).tolist() == [[1, 3, 0, 0, 0]]
    # A relevant item that was seen is neither found nor part of the ideal.
    assert ranking_metrics(scores, mask(3, 1, 3), mask(3, 1)).ndcg[0] == pytest.approx(
        1 / np.log2(3)
    )


def test_top_k_breaks_ties_by_item_id():
    scores = np.array([[0, 1, 2, 1, 2, 1], [0, 0, 0, 0, 0, 0]], dtype=np.float32)
    seen = np.zeros((2, 6), dtype=bool)
    assert top_k(scores, seen, 4).tolist() == [[2, 4, 1, 3], [1, 2, 3, 4]]


def test_nothing_relevant_is_refused():
    scores = np.zeros((2, 4))
    relevant = np.concatenate([mask(3, 1), mask(3, 0)])
    with pytest.raises(ValueError, match="row 1: no relevant item"):
        ranking_metrics(scores, relevant, np.zeros_like(relevant))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        candidate_scores(np.array([[0, np.nan]]), mask(1))
    with pytest.raises(ValueError, match="shape"):
        candidate_scores(np.zeros((1, 3)), mask(1))
    with pytest.raises(ValueError, match="shape"):
        ranks(np.zeros((1, 3)), mask(1), mask(2))


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_agrees_with_ir_measures_without_ties(world):
    scores, relevant, seen, k = world
    relevant = relevant & ~seen
    users, n_items = range(len(scores)), scores.shape[1] - 1
    wanted = {str(u): {str(i): 1 for i in range(1, n_items + 1) if relevant[u, i]} for u in users}
    run = {
        str(u): {str(i): float(scores[u, i]) for i in range(1, n_items + 1) if not seen[u, i]}
        for u in users
    }
    found = find(scores.copy(), np.nonzero(relevant), np.nonzero(seen), max(k, 20))
    for cut in {1, 5, 10, 20, k}:
        names = {"ndcg": nDCG @ cut, "hr": Success @ cut, "mrr": RR @ cut}
        for name, measure in names.items():
            expected = {
                row.query_id: row.value for row in ir_measures.iter_calc([measure], wanted, run)
            }
            for got in (ranking_metrics(scores, relevant, seen, cut), found.metrics(cut)):
                np.testing.assert_allclose(
                    getattr(got, name), [expected[str(u)] for u in users], rtol=0, atol=1e-9
                )


@settings(max_examples=60, deadline=None)
@given(worlds(levels=3))
def test_ties_agree_with_the_worst_order(world):
    """A plain sort, score down, irrelevant before relevant, gives the same ranks."""
    scores, relevant, seen, k = world
    found = ranks(scores, relevant, seen, k)
    for u in range(len(scores)):
        candidates = [i for i in range(1, scores.shape[1]) if not seen[u, i]]
        candidates.sort(key=lambda i: (-scores[u, i], relevant[u, i]))
        hits = [rank for rank, i in enumerate(candidates[:k], start=1) if relevant[u, i]]
        np.testing.assert_array_equal(found[u], hits + [np.inf] * (k - len(hits)))


@settings(max_examples=60, deadline=None)
@given(worlds(levels=3))
def test_lists_hold_at_each_rank_what_stands_there(world):
    """All candidates in an order of falling scores, irrelevant before relevant."""
    scores, relevant, seen, k = world
    found = find(scores.copy(), np.nonzero(relevant), np.nonzero(seen), k)
    for u, row in enumerate(found.lists):
        candidates = [i for i in range(1, scores.shape[1]) if not seen[u, i]]
        candidates.sort(key=lambda i: (-scores[u, i], relevant[u, i]))
        listed = row[row > 0]
        assert len(listed) == len(set(listed)) == min(k, len(candidates))
        assert not row[len(listed) :].any()
        for got, wanted in zip(listed, candidates[:k], strict=True):
            assert (scores[u, got], relevant[u, got]) == (scores[u, wanted], relevant[u, wanted])


@settings(max_examples=60, deadline=None)
@given(worlds(levels=3))
def test_top_k_is_a_plain_sort(world):
    scores, _, seen, k = world
    for row, user_scores, user_seen in zip(top_k(scores, seen, k), scores, seen, strict=True):
        candidates = [i for i in range(1, len(user_scores)) if not user_seen[i]]
        expected = sorted(candidates, key=lambda i: (-user_scores[i], i))[:k]
        assert row.tolist() == expected + [0] * (k - len(expected))


def test_means_name_the_cut_off():
    metrics = ranking_metrics(
        np.array([[0.0, 2, 1], [0, 1, 2]]), mask(2, 1).repeat(2, 0), mask(2).repeat(2, 0), 1
    )
    assert metrics.means(1) == {"ndcg@1": 0.5, "hr@1": 0.5, "mrr@1": 0.5}
