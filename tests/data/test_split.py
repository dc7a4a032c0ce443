"""Filters and splits: hand-worked cases, and invariants on random tables."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.data import split as splits
from shielded_recrl.errors import UserError

KINDS = ("per_user", "leave_one_out", "global_time")
pairs = st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=60)


def table(triples) -> pl.DataFrame:
    """(user, item, time) rows in the given order."""
    return pl.DataFrame(
        [(row, str(u), str(i), t) for row, (u, i, t) in enumerate(triples)],
        schema={"row": pl.UInt32, "user": pl.String, "item": pl.String, "time": pl.Int64},
        orient="row",
    )


def timed(triples) -> pl.DataFrame:
    return splits.chronological(table(triples)).with_columns(timestamp=pl.col("time"))


@st.composite
def histories(draw):
    """Distinct (user, item) pairs with times that may be equal."""
    return [(u, i, draw(st.integers(0, 20))) for u, i in sorted(draw(pairs))]


@given(histories(), st.sampled_from(KINDS), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_every_interaction_lands_in_exactly_one_part_in_its_order(rows, kind, valid, test):
    frame = timed(rows)
    parts = splits.split(frame, kind, valid, test)
    together = pl.concat(parts.values())
    assert sorted(together.rows()) == sorted(frame.rows())
    for part in parts.values():
        assert part.equals(part.sort("user", "order"))


@given(histories(), st.sampled_from(KINDS), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_train_comes_before_valid_and_valid_before_test(rows, kind, valid, test):
    parts = splits.split(timed(rows), kind, valid, test)
    for earlier, later in (("train", "valid"), ("valid", "test"), ("train", "test")):
        joined = parts[earlier].join(parts[later], on="user", suffix="_later")
        assert (joined["order"] < joined["order_later"]).all()
        assert (joined["time"] <= joined["time_later"]).all()


@given(histories(), st.sampled_from(KINDS[:2]), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_a_user_with_three_interactions_has_all_three_parts(rows, kind, valid, test):
    frame = timed(rows)
    parts = splits.split(frame, kind, valid, test)
    sizes = {name: dict(part["user"].value_counts().rows()) for name, part in parts.items()}
    for user, count in frame["user"].value_counts().rows():
        here = [sizes[name].get(user, 0) for name in splits.PARTS]
        assert min(here) >= 1 if count >= 3 else here == [count, 0, 0]


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(3, 0.1, 1), (19, 0.1, 1), (20, 0.1, 2), (30, 0.1, 3), (100, 0.29, 29), (2, 0.1, 0)],
)
def test_per_user_sizes(count, share, expected):
    parts = splits.split(timed([(1, i, i) for i in range(count)]), "per_user", share, share)
    assert [len(parts[name]) for name in ("valid", "test")] == [expected, expected]


def test_leave_one_out_takes_the_last_two():
    parts = splits.split(timed([(1, i, 9 - i) for i in range(5)]), "leave_one_out", 0.4, 0.4)
    assert parts["test"]["item"].to_list() == ["0"]
    assert parts["valid"]["item"].to_list() == ["1"]


def test_global_time_cuts_all_users_at_the_same_second():
    rows = [(user, t, t) for t in range(10) for user in (1, 2)]
    parts = splits.split(timed(rows), "global_time", 0.1, 0.2)
    assert set(parts["test"]["time"]) == {8, 9}
    assert set(parts["valid"]["time"]) == {7}
    assert len(parts["train"]) == 14


def test_global_time_keeps_a_second_together():
    rows = [(1, i, min(i, 7)) for i in range(10)]
    parts = splits.split(timed(rows), "global_time", 0.1, 0.1)
    assert parts["test"]["time"].to_list() == [7, 7, 7]


def test_global_time_without_times_is_refused():
    frame = timed([(1, 1, 1)]).with_columns(timestamp=pl.lit(None, dtype=pl.Int64))
    with pytest.raises(UserError, match="per_user"):
        splits.split(frame, "global_time", 0.1, 0.1)


def brute_core(rows: set, k: int) -> set:
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
    kept = splits.k_core(table([(u, i, 0) for u, i in rows]), k)
    assert {(int(u), int(i)) for u, i in kept.select("user", "item").rows()} == brute_core(rows, k)


def test_dense_ids_count_from_one_in_numeric_order():
    ids = splits.dense_ids(pl.Series(["10", "9", "10", "100"]))
    assert ids.rows() == [("9", 1), ("10", 2), ("100", 3)]


def test_equal_times_keep_file_order():
    frame = splits.chronological(table([(1, 7, 5), (1, 3, 5), (1, 9, 4), (1, 1, 5)]))
    assert frame["item"].to_list() == ["9", "7", "3", "1"]
    assert frame["order"].to_list() == [0, 1, 2, 3]


def test_latest_keeps_the_last_word_on_an_item():
    frame = splits.latest(table([(1, 1, 9), (1, 1, 3), (1, 2, 4), (1, 2, 4)]))
    assert sorted(frame.select("item", "row").rows()) == [("1", 0), ("2", 3)]


@given(pairs, st.randoms(use_true_random=False))
def test_shuffled_depends_on_the_seed_and_not_on_the_rows(rows, random):
    rows = [(u, i, 0) for u, i in sorted(rows)]
    mixed = random.sample(rows, len(rows))
    first, again = (
        splits.shuffled(table(part), np.random.default_rng(3)).select("user", "item", "order")
        for part in (rows, mixed)
    )
    assert first.equals(again)
    for _, group in first.group_by("user"):
        assert group["order"].to_list() == list(range(len(group)))


def test_shuffled_mixes():
    rows = [(1, i, 0) for i in range(10, 60)]
    orders = {
        tuple(splits.shuffled(table(rows), np.random.default_rng(seed))["item"]) for seed in (0, 1)
    }
    assert len(orders) == 2
    assert tuple(str(i) for i in range(10, 60)) not in orders
