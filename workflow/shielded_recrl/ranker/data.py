"""The splits of a dataset as one item sequence a user.

In: `train.parquet`, `valid.parquet`, `test.parquet`, `items.parquet` and `users.parquet` of a dataset
folder of the data stage. Out: `Splits`, indexed by user id, with the masks the metrics take.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from shielded_recrl.errors import UserError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Splits:
    """Item ids of each user in order, by split; `train[u]` is user u's, entry 0 is empty."""

    n_users: int
    n_items: int
    train: list[np.ndarray]
    valid: list[np.ndarray]
    test: list[np.ndarray]

    def history(self, split: str, user: int) -> np.ndarray:
        """Items that user had before `split` ("valid" or "test"), in order."""
        if split not in ("valid", "test"):
            raise ValueError(f"expected valid or test, got {split!r}")
        parts = (self.train[user],) if split == "valid" else (self.train[user], self.valid[user])
        return np.concatenate(parts)

    def histories(self, split: str) -> list[np.ndarray]:
        """`history` of every user id from 0."""
        return [self.history(split, user) for user in range(self.n_users + 1)]

    def evaluable(self, split: str) -> np.ndarray:
        """Users with a history before `split` and at least one item in it that is new to them."""
        return np.array(
            [
                user
                for user in range(1, self.n_users + 1)
                if len(past := self.history(split, user))
                and np.setdiff1d(getattr(self, split)[user], past).size
            ],
            dtype=np.int64,
        )

    def seen_mask(self, split: str, users: np.ndarray) -> np.ndarray:
        """Boolean [len(users), n_items+1]: items each user had before `split`."""
        return _mask([self.history(split, user) for user in users], self.n_items)

    def relevant_mask(self, split: str, users: np.ndarray) -> np.ndarray:
        """Boolean [len(users), n_items+1]: items of `split` that are new to each user."""
        relevant = _mask([getattr(self, split)[user] for user in users], self.n_items)
        return relevant & ~self.seen_mask(split, users)

    def popularity(self) -> np.ndarray:
        """Count of each item in the train split, int64 [n_items+1]."""
        return np.bincount(np.concatenate(self.train), minlength=self.n_items + 1)


def load_splits(folder: Path) -> Splits:
    """Read a dataset folder of the data stage.

    Raises:
        UserError: a file is missing, damaged, lacks a column, or names an unknown user or item.
    """
    folder = Path(folder)
    n_items = _catalogue_size(folder / "items.parquet", "item")
    n_users = _catalogue_size(folder / "users.parquet", "user")
    sequences = {
        split: _sequences(folder / f"{split}.parquet", n_users, n_items) for split in SPLITS
    }
    if not any(map(len, sequences["train"])):
        raise UserError(f"{folder / 'train.parquet'}: no interaction; make the dataset again")
    return Splits(n_users, n_items, **sequences)


def read_parquet(path: Path, columns: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """Read the named columns, checking that they have these types and no null.

    Raises:
        UserError: the file is missing or damaged, or a column is.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with `python -m shielded_recrl.data`")
    try:
        schema = pl.read_parquet_schema(path)
        wrong = [name for name, kind in columns.items() if schema.get(name) != kind]
        if not wrong:
            frame = pl.read_parquet(path, columns=list(columns))
    except (pl.exceptions.PolarsError, OSError) as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{path}: not a whole parquet file ({first_line}); delete it and make it again"
        ) from error
    if wrong:
        raise UserError(
            f"{path}: expected column {wrong[0]!r} of type {columns[wrong[0]]}, "
            f"found {schema.get(wrong[0], 'none')}; make the file with the data stage"
        )
    for name in columns:
        if frame[name].null_count():
            row = int(frame[name].is_null().arg_true()[0])
            raise UserError(f"{path}: column {name!r} is null in row {row}; every row needs one")
    return frame


def _catalogue_size(path: Path, column: str) -> int:
    ids = np.sort(read_parquet(path, {column: pl.Int32})[column].to_numpy())
    if not np.array_equal(ids, np.arange(1, len(ids) + 1)):
        raise UserError(f"{path}: expected the {column} ids to be 1..{len(ids)}, each once")
    return len(ids)


def _sequences(path: Path, n_users: int, n_items: int) -> list[np.ndarray]:
    columns = {"user": pl.Int32, "item": pl.Int32, "order": pl.Int32}
    frame = read_parquet(path, columns).sort("user", "order", maintain_order=True)
    for name, count in (("user", n_users), ("item", n_items)):
        ids = frame[name].to_numpy()
        if ids.size and (ids.min() < 1 or ids.max() > count):
            bad = int(ids[(ids < 1) | (ids > count)][0])
            raise UserError(f"{path}: {name} {bad} is outside 1..{count} of {name}s.parquet")
    ends = np.cumsum(np.bincount(frame["user"].to_numpy(), minlength=n_users + 1))
    return np.split(frame["item"].to_numpy(), ends[:-1])


def _mask(items: list[np.ndarray], n_items: int) -> np.ndarray:
    mask = np.zeros((len(items), n_items + 1), dtype=bool)
    rows = np.repeat(np.arange(len(items)), [len(row) for row in items])
    mask[rows, np.concatenate([np.empty(0, dtype=np.int64), *items]).astype(np.int64)] = True
    return mask
