"""The splits of a dataset as one item sequence a user.

In: `train.parquet`, `valid.parquet`, `test.parquet`, `items.parquet` and `users.parquet` of a dataset
folder of the data stage, or the sequences themselves. Out: `Splits`, indexed by user id, with the
pairs and masks the metrics take. Sequences are two arrays, not one a user, so that 25 million
interactions take 100 MB and every question about all users is answered without a loop over them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import polars as pl

from shielded_recrl.errors import UserError
from shielded_recrl.parquet import read_parquet

SPLITS = ("train", "valid", "test")

# Flags (bytes) held at once while all users' items are compared with their histories.
FLAGS = 2**24


@dataclass(frozen=True, eq=False)
class Sequences(Sequence):
    """Rows of item ids: row r is `items[offsets[r] : offsets[r + 1]]` and costs no array of its own."""

    items: np.ndarray  # integers [N]
    offsets: np.ndarray  # int64 [rows + 1], from 0 to N

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> Sequences:
        """The same rows, copied into two arrays."""
        rows = list(rows)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        items = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=offsets[-1])
        return cls(items, offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Items of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        row = range(len(self))[row]
        return self.items[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        ends = self.offsets.tolist()
        return (self.items[start:end] for start, end in pairwise(ends))

    def pairs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `rows`, item) of every item of these rows, in order; both int64."""
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        shift = starts - (np.cumsum(lengths) - lengths)
        places = np.repeat(np.arange(len(rows)), lengths)
        return places, self.items[np.arange(len(places)) + shift[places]].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Splits:
    """Item ids of each user in order, by split; `train[u]` is user u's, entry 0 is empty."""

    n_users: int
    n_items: int
    train: Sequences
    valid: Sequences
    test: Sequences

    @classmethod
    def from_sequences(
        cls,
        train: Sequence[Sequence[int]],
        valid: Sequence[Sequence[int]],
        test: Sequence[Sequence[int]],
        n_items: int,
    ) -> Splits:
        """Splits of users 1, 2, ...: entry u - 1 of each argument is user u's items in order.

        Raises:
            ValueError: the arguments differ in length, or an item is outside 1..n_items.
        """
        parts = [Sequences.from_rows(chain([[]], rows)) for rows in (train, valid, test)]
        if len({len(part) for part in parts}) > 1:
            raise ValueError(f"{len(train)}, {len(valid)} and {len(test)} users: they must agree")
        items = np.concatenate([part.items for part in parts])
        if items.size and (items.min() < 1 or items.max() > n_items):
            raise ValueError(f"items {items.min()}..{items.max()} are not all within 1..{n_items}")
        return cls(len(train), n_items, *parts)

    def history(self, split: str, user: int) -> np.ndarray:
        """Items that user had before `split` ("valid" or "test"), in order."""
        return np.concatenate([part[user] for part in self._before(split)])

    def histories(self, split: str) -> Sequences:
        """`history` of every user id from 0."""
        parts = self._before(split)
        if len(parts) == 1:
            return parts[0]
        offsets = sum(part.offsets for part in parts)
        items = np.empty(offsets[-1], dtype=np.int32)
        starts = offsets[:-1]
        for part in parts:
            lengths = part.lengths
            items[np.arange(len(part.items)) + np.repeat(starts - part.offsets[:-1], lengths)] = (
                part.items
            )
            starts = starts + lengths
        return Sequences(items, offsets)

    def seen_pairs(self, split: str, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in `users`, item) of everything these users had before `split`."""
        places, items = zip(*(part.pairs(users) for part in self._before(split)), strict=True)
        return np.concatenate(places), np.concatenate(items)

    def evaluable(self, split: str) -> np.ndarray:
        """Users with a history before `split` and at least one item in it that is new to them."""
        width = self.n_items + 1
        size = max(1, FLAGS // width)
        flags = np.zeros(size * width, dtype=bool)
        found = []
        for start in range(1, self.n_users + 1, size):
            users = np.arange(start, min(start + size, self.n_users + 1))
            places, items = self.seen_pairs(split, users)
            new_places, new_items = getattr(self, split).pairs(users)
            # Flags are set, read and taken back: clearing them all would cost users x items.
            flags[places * width + items] = True
            new = ~flags[new_places * width + new_items]
            flags[places * width + items] = False
            found.append(users[np.intersect1d(places, new_places[new])])
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def seen_mask(self, split: str, users: np.ndarray) -> np.ndarray:
        """Boolean [len(users), n_items+1]: items each user had before `split`."""
        return self._mask(self.seen_pairs(split, users), users)

    def relevant_mask(self, split: str, users: np.ndarray) -> np.ndarray:
        """Boolean [len(users), n_items+1]: items of `split` that are new to each user."""
        return self._mask(getattr(self, split).pairs(users), users) & ~self.seen_mask(split, users)

    def popularity(self) -> np.ndarray:
        """Count of each item in the train split, int64 [n_items+1]."""
        return np.bincount(self.train.items, minlength=self.n_items + 1)

    def _before(self, split: str) -> tuple[Sequences, ...]:
        if split not in ("valid", "test"):
            raise ValueError(f"expected valid or test, got {split!r}")
        return (self.train,) if split == "valid" else (self.train, self.valid)

    def _mask(self, pairs: tuple[np.ndarray, np.ndarray], users: np.ndarray) -> np.ndarray:
        mask = np.zeros((len(users), self.n_items + 1), dtype=bool)
        mask[pairs] = True
        return mask


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
    if not len(sequences["train"].items):
        raise UserError(f"{folder / 'train.parquet'}: no interaction; make the dataset again")
    return Splits(n_users, n_items, **sequences)


def _catalogue_size(path: Path, column: str) -> int:
    ids = np.sort(read_parquet(path, {column: pl.Int32})[column].to_numpy())
    if not np.array_equal(ids, np.arange(1, len(ids) + 1)):
        raise UserError(f"{path}: expected the {column} ids to be 1..{len(ids)}, each once")
    return len(ids)


def _sequences(path: Path, n_users: int, n_items: int) -> Sequences:
    columns = {"user": pl.Int32, "item": pl.Int32, "order": pl.Int32}
    frame = read_parquet(path, columns)
    # The data stage writes rows in this order; sorting 25 million again would take seconds.
    place = frame["user"].to_numpy().astype(np.int64) * 2**32 + frame["order"].to_numpy()
    if (place[1:] < place[:-1]).any():
        frame = frame.sort("user", "order", maintain_order=True)
    for name, count in (("user", n_users), ("item", n_items)):
        ids = frame[name].to_numpy()
        if ids.size and (ids.min() < 1 or ids.max() > count):
            bad = int(ids[(ids < 1) | (ids > count)][0])
            raise UserError(f"{path}: {name} {bad} is outside 1..{count} of {name}s.parquet")
    ends = np.cumsum(np.bincount(frame["user"].to_numpy(), minlength=n_users + 1))
    return Sequences(frame["item"].to_numpy(), np.concatenate([[0], ends]))
