"""Filters and splits as pure functions on columns of interactions.

In: one entry an interaction in each column. Out: masks, permutations and numbers.
k-core: Seidman (1983), Network structure and minimum degree. The protocols: Meng et al. (2020),
Exploring data splitting strategies for the evaluation of recommendation models.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from shielded_recrl.errors import UserError

PARTS = ("train", "valid", "test")
SLICE = 1 << 20


def counts(values: np.ndarray, size: int = 0) -> np.ndarray:
    """How often each number from 0 occurs, (max(size, largest + 1),)."""
    size = max(size, int(values.max(initial=-1)) + 1)
    total = np.zeros(size, np.int64)
    for rows in _slices(len(values), max(SLICE, size)):
        total += np.bincount(values[rows], minlength=size)
    return total


def look_up(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """table[places], (rows,), for a small table."""
    found = np.empty(len(places), table.dtype)
    for rows in _slices(len(places)):
        found[rows] = table[places[rows]]
    return found


def _slices(rows: int, size: int = 0) -> Iterator[slice]:
    """Numpy widens 32-bit numbers to 64 before it uses them; in slices that copy stays small."""
    size = size or SLICE
    return (slice(start, start + size) for start in range(0, rows, size))


def latest(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Mask of one row a user and item: the last in time, and of those the last in the file.

    Args:
        user: (rows,) int32, not negative.
        item: (rows,) int32, not negative.
        time: (rows,).
    """
    keep = np.ones(len(user), bool)
    # Neighbouring slices share a row.
    if all(
        (np.diff(_packed(user[rows], item[rows], 32)) > 0).all()
        for rows in (slice(part.start, part.stop + 1) for part in _slices(len(user)))
    ):
        return keep
    pair = _packed(user, item, 32)
    ordered = np.sort(pair, kind="stable")
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if len(repeated):
        place = np.searchsorted(repeated, pair).clip(max=len(repeated) - 1)
        rows = np.flatnonzero(repeated[place] == pair)
        rows = rows[np.lexsort((time[rows], pair[rows]))]
        keep[rows[:-1][pair[rows[:-1]] == pair[rows[1:]]]] = False
    return keep


def k_core(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
    """Mask of the largest part in which every user and item has at least `k` interactions.

    Args:
        user: (rows,) int32, not negative.
        item: (rows,) int32, not negative.
        k: at least 1.
    """
    kept = np.ones(len(user), bool)
    users, items = counts(user), counts(item)
    while True:
        keep = look_up(users >= k, user) & look_up(items >= k, item)
        if keep.all():
            return kept
        kept[kept] = keep
        users -= counts(user[~keep], len(users))
        items -= counts(item[~keep], len(items))
        user, item = user[keep], item[keep]


def dense_ids(source: pl.Series) -> np.ndarray:
    """Number distinct source ids from 1: numbers by value, text by length and then as text.

    Numeric text so comes in numeric order. The numbers depend on the set of ids alone.

    Returns:
        (ids,) int32, the number of each.
    """
    text = pl.col("id")
    keys = [text.str.len_chars(), text] if source.dtype == pl.String else [text]
    order = source.to_frame("id").select(pl.arg_sort_by(keys)).to_series().to_numpy()
    numbers = np.empty(len(source), np.int32)
    numbers[order] = np.arange(1, len(source) + 1, dtype=np.int32)
    return numbers


def chronological(user: np.ndarray, time: np.ndarray) -> np.ndarray | None:
    """Permutation to order by user and time; equal times keep their order.

    Args:
        user: (rows,) int32, not negative.
        time: (rows,) int64.

    Returns:
        (rows,), or None where the rows are in that order already.
    """
    first, last = int(time.min()), int(time.max())
    bits = (last - first).bit_length()
    if bits + int(user.max()).bit_length() > 63:
        return np.lexsort((time, user))
    # One number a row is sorted in a fraction of the time of two keys.
    key = _packed(user, time, bits, first)
    return None if (key[:-1] <= key[1:]).all() else np.argsort(key, kind="stable")


def shuffled(user: np.ndarray, item: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permutation to order by user, at random within one, for sources without time."""
    order = np.lexsort((item, user))
    lot = rng.permutation(len(order))
    return order[np.lexsort((lot, user[order]))]


def positions(size: np.ndarray) -> np.ndarray:
    """0-based position within the user, (rows,) int32, of rows ordered by user.

    Args:
        size: (users,) interactions of each user.
    """
    start = np.cumsum(size) - size
    return np.arange(size.sum(), dtype=np.int32) - np.repeat(start.astype(np.int32), size)


def split(
    size: np.ndarray,
    timestamp: np.ndarray | None,
    kind: str,
    valid_share: float,
    test_share: float,
) -> np.ndarray:
    """Cut interactions, ordered by user and then by time, into train, valid and test.

    per_user: of a user's n >= 3 interactions the last max(1, floor(test_share n)) are test, the
    max(1, floor(valid_share n)) before them valid; with n < 3 all are train.
    leave_one_out: of a user's n >= 3 interactions the last is test, the one before it valid.
    global_time: the newest test_share of all interactions are test, valid_share before them valid;
    interactions of one second stay together, on the newer side of a cut.

    Args:
        size: (users,) interactions of each user, in the order of the rows.
        timestamp: (rows,) seconds; None where there are none.
        kind: per_user, leave_one_out or global_time.
        valid_share: share of valid, not used by leave_one_out.
        test_share: share of test, not used by leave_one_out.

    Returns:
        (rows,) int8: the index in `PARTS` of each row.

    Raises:
        UserError: global_time without times.
    """
    if kind == "global_time":
        return _by_time(timestamp, valid_share, test_share)
    if kind == "leave_one_out":
        valid = test = np.ones_like(size)
    else:
        valid, test = _share(size, valid_share), _share(size, test_share)
    short = size < 3
    valid, test = np.where(short, 0, valid), np.where(short, 0, test)
    pieces = np.stack([size - valid - test, valid, test], axis=1).ravel()
    return np.repeat(np.tile(np.arange(3, dtype=np.int8), len(size)), pieces)


def _share(size: np.ndarray | int, share: float) -> np.ndarray:
    # The small term keeps 0.1 * 30 at 3 whatever the binary fraction says.
    return np.maximum(1, np.floor(size * share + 1e-9).astype(np.int64))


def _by_time(timestamp: np.ndarray | None, valid_share: float, test_share: float) -> np.ndarray:
    if timestamp is None:
        raise UserError("split global_time needs times and this source has none; use per_user")
    rows = len(timestamp)
    test, valid = (int(_share(rows, share)) for share in (test_share, valid_share))
    places = [max(0, rows - test - valid), max(0, rows - test)]
    to_valid, to_test = np.partition(timestamp, places)[places]
    return (timestamp >= to_valid).astype(np.int8) + (timestamp >= to_test)


def _packed(high: np.ndarray, low: np.ndarray, bits: int, least: int = 0) -> np.ndarray:
    """(high, low) as one int64 that sorts like the pair; `low` starts at `least`, has `bits`."""
    key = high.astype(np.int64)
    key <<= bits
    key += low
    key -= least
    return key
