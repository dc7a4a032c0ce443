"""Reading the splits: sequences, masks, and files that are wrong."""

import numpy as np
import polars as pl
import pytest

from shielded_recrl.errors import UserError
from shielded_recrl.ranker.data import load_splits, read_parquet

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
