"""Filters and splits as pure functions on a table of interactions.

In: tables with user, item and, where noted, time, row, order. Out: tables of the same columns.
k-core: Seidman (1983), Network structure and minimum degree. The protocols: Meng et al. (2020),
Exploring data splitting strategies for the evaluation of recommendation models.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from shielded_recrl.errors import UserError

PARTS = ("train", "valid", "test")


def latest(frame: pl.DataFrame) -> pl.DataFrame:
    """One row a user and item: the last in time, and of those the last in the file."""
    return frame.sort("time", "row").unique(["user", "item"], keep="last", maintain_order=True)


def k_core(frame: pl.DataFrame, k: int) -> pl.DataFrame:
    """The largest part in which every user and every item has at least `k` interactions."""
    while True:
        kept = frame.filter(pl.len().over("user") >= k, pl.len().over("item") >= k)
        if len(kept) == len(frame):
            return kept
        frame = kept


def dense_ids(values: pl.Series) -> pl.DataFrame:
    """Number distinct source ids from 1: shorter ids first, then by text.

    Numeric ids so come in numeric order. The numbers depend on the set of ids alone.

    Returns:
        Table with `source_id` and `id` (int32).
    """
    return (
        pl.DataFrame({"source_id": values.unique()})
        .sort(pl.col("source_id").str.len_chars(), "source_id")
        .with_row_index("id", offset=1)
        .select("source_id", pl.col("id").cast(pl.Int32))
    )


def chronological(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `order`, the 0-based position within the user by time; equal times keep file order."""
    return _number(frame.sort("user", "time", "row"))


def shuffled(frame: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Add `order`, a random 0-based position within the user, for sources without time."""
    frame = frame.sort("user", "item")
    lot = pl.Series("lot", rng.permutation(len(frame)))
    return _number(frame.with_columns(lot).sort("user", "lot").drop("lot"))


def _number(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over("user").alias("order"))


def split(
    frame: pl.DataFrame, kind: str, valid_share: float, test_share: float
) -> dict[str, pl.DataFrame]:
    """Cut interactions into train, valid and test; each row lands in exactly one.

    per_user: of a user's n >= 3 interactions the last max(1, floor(test_share n)) are test, the
    max(1, floor(valid_share n)) before them valid; with n < 3 all are train.
    leave_one_out: of a user's n >= 3 interactions the last is test, the one before it valid.
    global_time: the newest test_share of all interactions are test, valid_share before them valid;
    interactions of one second stay together, on the newer side of a cut.

    Args:
        frame: columns user, order, timestamp; sorted by (user, order).
        kind: per_user, leave_one_out or global_time.
        valid_share: share of valid, not used by leave_one_out.
        test_share: share of test, not used by leave_one_out.

    Returns:
        The three parts under the names of `PARTS`.
    """
    if kind == "global_time":
        part = _by_time(frame, valid_share, test_share)
    else:
        part = _by_user(kind, valid_share, test_share)
    labelled = frame.with_columns(part.alias("part"))
    return {name: labelled.filter(pl.col("part") == name).drop("part") for name in PARTS}


def _by_user(kind: str, valid_share: float, test_share: float) -> pl.Expr:
    count = pl.len().over("user")

    def size(share: float) -> pl.Expr:
        if kind == "leave_one_out":
            return pl.lit(1)
        # The small term keeps 0.1 * 30 at 3 whatever the binary fraction says.
        return pl.max_horizontal((count * share + 1e-9).floor().cast(pl.Int64), pl.lit(1))

    from_end = count.cast(pl.Int64) - pl.col("order")
    return (
        pl.when(count < 3)
        .then(pl.lit("train"))
        .when(from_end <= size(test_share))
        .then(pl.lit("test"))
        .when(from_end <= size(test_share) + size(valid_share))
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )


def _by_time(frame: pl.DataFrame, valid_share: float, test_share: float) -> pl.Expr:
    times = frame["timestamp"].sort()
    if times.null_count():
        raise UserError("split global_time needs times and this source has none; use per_user")
    test, valid = (max(1, int(len(times) * share + 1e-9)) for share in (test_share, valid_share))
    to_test, to_valid = times[max(0, len(times) - test)], times[max(0, len(times) - test - valid)]
    return (
        pl.when(pl.col("timestamp") >= to_test)
        .then(pl.lit("test"))
        .when(pl.col("timestamp") >= to_valid)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )
