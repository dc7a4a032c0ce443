"""Reading the splits: sequences, masks, and files that are wrong."""

from itertools import chain

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.parquet import read_parquet
from shielded_recrl.ranker import data
from shielded_recrl.ranker.data import Sequences, Splits, load_splits

SEQUENCES = [
    {"train": [3, 1], "valid": [4], "test": [5]},
    {"train": [2, 4], "valid": [2], "test": [1, 4]},
    {},
    {"test": [1]},
]


@pytest.fixture
def folder(dataset):
    return dataset(SEQUENCES, n_items=6)


def test_sequences_by_user_in_order(folder):
    splits = load_splits(folder)
    assert (splits.n_users, splits.n_items) == (4, 6)
    assert [row.tolist() for row in splits.train] == [[], [3, 1], [2, 4], [], []]
    assert [row.tolist() for row in splits.test] == [[], [5], [1, 4], [], [1]]
    assert splits.history("valid", 1).tolist() == [3, 1]
    assert [row.tolist() for row in splits.histories("test")] == [[], [3, 1, 4], [2, 4, 2], [], []]
    assert splits.popularity().tolist() == [0, 1, 1, 1, 1, 0, 0]


def test_rows_in_any_order_are_sorted(folder):
    path = folder / "train.parquet"
    pl.read_parquet(path).reverse().write_parquet(path)
    assert load_splits(folder).train[1].tolist() == [3, 1]


def test_masks(folder):
    splits = load_splits(folder)
    users = np.array([2, 1])
    assert [np.flatnonzero(row).tolist() for row in splits.seen_mask("test", users)] == [
        [2, 4],
        [1, 3, 4],
    ]
    # Item 4 comes back in user 2's test split: seen before, so nothing to find.
    assert [np.flatnonzero(row).tolist() for row in splits.relevant_mask("test", users)] == [
        [1],
        [5],
    ]
    assert splits.seen_mask("valid", np.array([], dtype=np.int64)).shape == (0, 7)


def test_evaluable_users_have_a_history_and_something_new(folder):
    splits = load_splits(folder)
    assert splits.evaluable("valid").tolist() == [1]
    assert splits.evaluable("test").tolist() == [1, 2]


def test_an_unknown_split_is_refused(folder):
    with pytest.raises(ValueError, match="valid or test"):
        load_splits(folder).history("train", 1)


item_lists = st.lists(st.integers(1, 7), max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(item_lists, item_lists, item_lists), min_size=1, max_size=6),
    flags=st.sampled_from([1, 17, 2**24]),
)
def test_agrees_with_a_loop_over_users(rows, flags):
    """Everything a split answers, against plain lists and sets; blocks of one, two and all users."""
    splits = Splits.from_sequences(*zip(*rows, strict=True), n_items=7)
    rows = [([], [], []), *rows]
    users = np.arange(len(rows))[::-1]
    for at, split in ((1, "valid"), (2, "test")):
        past = [list(chain(*row[:at])) for row in rows]
        new = [set(row[at]) - set(taken) for row, taken in zip(rows, past, strict=True)]
        assert [row.tolist() for row in splits.histories(split)] == past
        assert [splits.history(split, user).tolist() for user in range(len(rows))] == past
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "FLAGS", flags)
            assert splits.evaluable(split).tolist() == [
                user for user in range(len(rows)) if past[user] and new[user]
            ]
        for mask, wanted in ((splits.seen_mask, past), (splits.relevant_mask, new)):
            assert [set(np.flatnonzero(row)) for row in mask(split, users)] == [
                set(wanted[user]) for user in users
            ]
        places, items = splits.seen_pairs(split, users)
        for place, user in enumerate(users):
            assert items[places == place].tolist() == past[user]
    everything = list(chain(*(row[0] for row in rows)))
    assert splits.popularity().tolist() == [everything.count(item) for item in range(8)]


def test_sequences_are_rows():
    rows = [[], [3, 1], [], [2]]
    sequences = Sequences.from_rows(rows)
    assert len(sequences) == 4
    assert [row.tolist() for row in sequences] == rows
    assert [sequences[i].tolist() for i in (1, -1, np.int64(3))] == [[3, 1], [2], [2]]
    assert sequences.lengths.tolist() == [0, 2, 0, 1]
    with pytest.raises(IndexError):
        sequences[4]
    places, items = sequences.pairs(np.array([3, 0, 1, 1]))
    assert list(zip(places, items, strict=True)) == [(0, 2), (2, 3), (2, 1), (3, 3), (3, 1)]


def test_sequences_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2, 1 and 2 users"):
        Splits.from_sequences([[1], [2]], [[1]], [[], []], n_items=2)
    for bad in (0, 3):
        with pytest.raises(ValueError, match=r"not all within 1\.\.2"):
            Splits.from_sequences([[1]], [[bad]], [[2]], n_items=2)


@pytest.mark.parametrize("name", ["train", "items", "users"])
def test_a_truncated_file_is_named(folder, name):
    path = folder / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"{name}\.parquet: not a whole parquet file") as error:
        load_splits(folder)
    assert "\n" not in str(error.value)


def test_a_file_cut_in_its_body_is_named(folder):
    path = folder / "train.parquet"
    raw = path.read_bytes()
    path.write_bytes(raw[:4] + raw[-(len(raw) // 2) :])
    with pytest.raises(UserError, match=r"train\.parquet"):
        load_splits(folder)


def test_a_missing_file_is_named(folder):
    (folder / "valid.parquet").unlink()
    with pytest.raises(UserError, match=r"valid\.parquet: no such file"):
        load_splits(folder)


def rewrite(path, change):
    change(pl.read_parquet(path)).write_parquet(path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train", lambda f: f.drop("item"), "expected column 'item' of type Int32, found none"),
        ("train", lambda f: f.cast({"user": pl.Int64}), "expected column 'user' of type Int32"),
        ("train", lambda f: f.with_columns(item=pl.lit(7, pl.Int32)), "item 7 is outside 1..6"),
        ("test", lambda f: f.with_columns(user=pl.lit(0, pl.Int32)), "user 0 is outside 1..4"),
        ("valid", lambda f: f.with_columns(item=pl.lit(None, pl.Int32)), "is null in row 0"),
        ("train", lambda f: f.head(0), "no interaction"),
        ("items", lambda f: f.head(3).reverse().vstack(f.head(1)), "item ids to be 1..4"),
        ("users", lambda f: f.tail(2), "user ids to be 1..2"),
    ],
)
def test_wrong_content_is_named(folder, file, change, message):
    rewrite(folder / f"{file}.parquet", change)
    with pytest.raises(UserError, match=message) as error:
        load_splits(folder)
    assert f"{file}.parquet" in str(error.value)


def test_only_named_columns_are_read(folder):
    assert read_parquet(folder / "train.parquet", {"item": pl.Int32}).columns == ["item"]
