"""Filters and splits: hand-worked cases, and invariants on random interactions."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.data import split as splits
from shielded_recrl.errors import UserError

KINDS = ("per_user", "leave_one_out", "global_time")
shares = st.floats(0.01, 0.49)
pairs = st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60)


def columns(rows, width=3) -> list[np.ndarray]:
    """(user, item, time) rows as columns of the types they have in the pipeline."""
    kinds = (np.int32, np.int32, np.int64)[:width]
    table = np.array(list(rows), np.int64).reshape(-1, width)
    return [table[:, place].astype(kind) for place, kind in enumerate(kinds)]


def parts(rows, kind, valid, test) -> dict[str, list[tuple[int, int, int]]]:
    """Rows in the order of their users and times, by the part they land in."""
    user, item, time = columns(rows)
    order = splits.chronological(user, time)
    if order is not None:
        user, item, time = user[order], item[order], time[order]
    label = splits.split(splits.counts(user), time, kind, valid, test)
    table = list(zip(user.tolist(), item.tolist(), time.tolist(), strict=True))
    return {
        name: [row for row, place in zip(table, label, strict=True) if place == number]
        for number, name in enumerate(splits.PARTS)
    }


@st.composite
def histories(draw):
    """Distinct (user, item) pairs, in any order, with times that may be equal."""
    times = st.integers(0, 20)
    return [(u, i, draw(times)) for u, i in draw(st.permutations(sorted(draw(pairs))))]


@given(histories(), st.sampled_from(KINDS), shares, shares)
def test_no_interaction_is_lost_or_doubled(rows, kind, valid, test):
    found = parts(rows, kind, valid, test)
    assert sorted(row for part in found.values() for row in part) == sorted(rows)


@given(histories(), st.sampled_from(KINDS), shares, shares)
def test_train_comes_before_valid_and_valid_before_test(rows, kind, valid, test):
    found = parts(rows, kind, valid, test)
    for earlier, later in (("train", "valid"), ("valid", "test"), ("train", "test")):
        for user, _, time in found[earlier]:
            assert all(time <= t for u, _, t in found[later] if u == user)


@given(histories(), shares, shares)
def test_global_time_has_no_overlap_between_users(rows, valid, test):
    found = parts(rows, "global_time", valid, test)
    train, middle, last = ([row[2] for row in found[name]] for name in splits.PARTS)
    assert max(train, default=-1) < min(middle + last)
    assert max(middle, default=-1) < min(last)


@given(histories(), st.sampled_from(KINDS[:2]), shares, shares)
def test_a_user_with_three_interactions_has_all_three_parts(rows, kind, valid, test):
    found = parts(rows, kind, valid, test)
    for user in {row[0] for row in rows}:
        count = sum(row[0] == user for row in rows)
        here = [sum(row[0] == user for row in found[name]) for name in splits.PARTS]
        assert min(here) >= 1 if count >= 3 else here == [count, 0, 0]


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(3, 0.1, 1), (19, 0.1, 1), (20, 0.1, 2), (30, 0.1, 3), (100, 0.29, 29), (2, 0.1, 0)],
)
def test_per_user_sizes(count, share, expected):
    found = parts([(1, i, i) for i in range(count)], "per_user", share, share)
    assert [len(found[name]) for name in ("valid", "test")] == [expected, expected]


def test_leave_one_out_takes_the_last_two():
    found = parts([(1, i, 9 - i) for i in range(5)], "leave_one_out", 0.4, 0.4)
    assert found["test"] == [(1, 0, 9)]
    assert found["valid"] == [(1, 1, 8)]


def test_global_time_cuts_all_users_at_the_same_second():
    found = parts([(user, t, t) for t in range(10) for user in (1, 2)], "global_time", 0.1, 0.2)
    assert {row[2] for row in found["test"]} == {8, 9}
    assert {row[2] for row in found["valid"]} == {7}
    assert len(found["train"]) == 14


def test_global_time_keeps_a_second_together():
    found = parts([(1, i, min(i, 7)) for i in range(10)], "global_time", 0.1, 0.1)
    assert [row[2] for row in found["test"]] == [7, 7, 7]


def test_global_time_without_times_is_refused():
    with pytest.raises(UserError, match="per_user"):
        splits.split(np.array([3]), None, "global_time", 0.1, 0.1)


def peeled(rows: set, k: int) -> set:
    """k-core by removing one offending user or item after the other."""
    while True:
        for axis in (0, 1):
            for value in {row[axis] for row in rows}:
                rest = {row for row in rows if row[axis] != value}
                if len(rows) - len(rest) < k:
                    rows = rest
                    break
            else:
                continue
            break
        else:
            return rows


@given(pairs, st.integers(1, 5))
def test_k_core_is_the_one_found_by_peeling(rows, k):
    listed = sorted(rows)
    kept = splits.k_core(*columns(listed, 2), k)
    assert {row for row, keep in zip(listed, kept, strict=True) if keep} == peeled(rows, k)


def test_k_core_goes_on_until_nothing_leaves():
    # A path: with k = 2 only its ends can leave, and then the next ones.
    path = [(n // 2, (n + 1) // 2) for n in range(40)]
    ring = [(50, 50), (50, 51), (51, 51), (51, 50)]
    kept = splits.k_core(*columns(path + ring, 2), 2)
    assert kept.tolist() == [False] * 40 + [True] * 4


@pytest.mark.parametrize(
    ("ids", "numbers"),
    [
        (["10", "9", "100"], [2, 1, 3]),
        ([10, 9, 100], [2, 1, 3]),
        (["B", "AA", "A"], [2, 3, 1]),
    ],
)
def test_dense_ids_count_from_one_shortest_first(ids, numbers):
    assert splits.dense_ids(pl.Series(ids)).tolist() == numbers


@pytest.mark.parametrize("scale", [1, 2**59])
def test_equal_times_keep_file_order(scale):
    user, item, time = columns([(1, 7, 5), (0, 2, 6), (1, 3, 5), (1, 9, -4), (0, 8, 6), (1, 1, 5)])
    order = splits.chronological(user, time * scale)
    assert item[order].tolist() == [2, 8, 9, 7, 3, 1]


def test_rows_in_order_stay():
    user, _, time = columns([(0, 7, 5), (0, 3, 5), (1, 9, 1)])
    assert splits.chronological(user, time) is None


@given(st.permutations([(u, i, t) for t, (u, i) in enumerate(np.ndindex(4, 3))]))
def test_order_by_time_does_not_depend_on_the_rows(rows):
    user, item, time = columns(rows)
    order = splits.chronological(user, time)
    sequence = item if order is None else item[order]
    assert sequence.tolist() == [0, 1, 2] * 4


@given(histories(), st.lists(st.integers(0, 59), max_size=20))
def test_latest_is_what_a_dictionary_keeps(rows, again):
    rows = rows + [(*rows[n % len(rows)][:2], n % 7) for n in again]
    kept = splits.latest(*columns(rows))
    wanted = {}
    for number, (user, item, time) in enumerate(rows):
        if time >= wanted.get((user, item), (-1, 0))[0]:
            wanted[user, item] = (time, number)
    assert np.flatnonzero(kept).tolist() == sorted(number for _, number in wanted.values())


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 50))
def test_slices_do_not_show(values, size):
    codes = np.array(values, np.int32)
    table = np.arange(41) ** 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "SLICE", size)
        assert splits.look_up(table, codes).tolist() == [value**2 for value in values]
        assert splits.counts(codes, 41).tolist() == [values.count(n) for n in range(41)]
        latest = splits.latest(codes, np.zeros_like(codes), np.zeros(len(codes), np.int64))
    assert np.count_nonzero(latest) == len(set(values))


@given(pairs, st.randoms(use_true_random=False))
def test_shuffled_depends_on_the_seed_and_not_on_the_rows(rows, random):
    mixed = random.sample(sorted(rows), len(rows))
    found = []
    for part in (sorted(rows), mixed):
        user, item = columns(part, 2)
        order = splits.shuffled(user, item, np.random.default_rng(3))
        assert (np.diff(user[order]) >= 0).all()
        found.append(list(zip(user[order], item[order], strict=True)))
    assert found[0] == found[1]
    assert set(found[0]) == rows


def test_shuffled_mixes():
    user, item = columns([(1, i) for i in range(50)], 2)
    orders = {tuple(splits.shuffled(user, item, np.random.default_rng(seed))) for seed in (0, 1)}
    assert len(orders) == 2
    assert tuple(range(50)) not in orders


def test_positions_count_within_the_user():
    assert splits.positions(np.array([2, 1, 3])).tolist() == [0, 1, 0, 0, 1, 2]
