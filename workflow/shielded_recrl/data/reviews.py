"""Review texts of the interactions that were kept, and the names of the users who were.

In: the reviews in a raw file, a block at a time, and the kept interactions with the split of each.
Out: a name a user, for the audit to look for, and reviews.parquet with

    user, item   int32, of an interaction
    split        train, valid or test: that of the interaction
    text         HTML entities and tags resolved, cut after a word at 2,000 characters

by user and item, at most one row an interaction. All texts of a catalogue may not fit into memory,
so they are sorted in runs on disk (external merge sort, Knuth 1998, The Art of Computer
Programming 3, 5.4).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from shielded_recrl.data.metadata import clean
from shielded_recrl.data.split import PARTS
from shielded_recrl.files import SEAL, sealed

SCHEMA = {"user": pl.Int32, "item": pl.Int32, "split": pl.String, "text": pl.String}
# Characters of a text; 97% of reviews of musical instruments are shorter, and so are references.
LENGTH = 2000
# Characters of a name.
NAME_LENGTH = 100
# Bytes of texts that are sorted at once, and interactions whose texts are written at once.
RUN = 128 << 20
GROUP = 100_000
# Small enough for a reader of one group of a run to skip the others.
RUN_ROWS = 4096


class Written(NamedTuple):
    """What came of the reviews.

    Attributes:
        reviews: rows of reviews.parquet.
        names: (users,) of each user, the first being that of user 1; null where no review has one.
    """

    reviews: int
    names: pl.Series


def write_reviews(
    path: Path,
    texts: Iterator[pl.DataFrame],
    users: pl.Series,
    items: pl.Series,
    interactions: pl.DataFrame,
    part: np.ndarray,
) -> Written:
    """Write the reviews of kept interactions.

    An interaction's review is the one with its user, item and time; of several the last in the file,
    as with interactions; reviews without a text do not count. A user's name is the last in the file
    that any review of theirs gives, be it of a kept interaction or not.

    Args:
        path: reviews.parquet.
        texts: user and item, as in the source, time, text and name of each review, in file order.
        users: source id of each user, the first being that of user 1.
        items: the same of items.
        interactions: user, item, timestamp of each interaction.
        part: (interactions,) place in `PARTS` of the split of each.
    """
    pair = _pair(interactions["user"].to_numpy(), interactions["item"].to_numpy())
    order = np.argsort(pair)
    pair, part = pair[order], part[order]
    time = interactions["timestamp"].to_numpy()[order]
    splits = np.array(PARTS)
    # Place 0 is that of all users who were not kept.
    names = np.full(len(users) + 1, None, dtype=object)
    # Dictionaries, since polars would go through all ids again at every block.
    by_id = [{name: n for n, name in enumerate(ids, start=1)} for ids in (users, items)]
    # The outer block, as it turns a full disk into an error for people.
    with (
        sealed(path) as partial,
        tempfile.TemporaryDirectory(".partial", ".reviews-", path.parent) as inside,
    ):
        runs = _runs((_placed(block, *by_id, pair, time, names) for block in texts), Path(inside))
        groups = []
        for start in range(0, len(pair), GROUP):
            group = _group(runs, start)
            places = group["place"].to_numpy()
            table = pl.DataFrame(
                {
                    "user": pair[places] >> 32,
                    "item": pair[places] & 0xFFFFFFFF,
                    "split": splits[part[places]],
                    "text": group["text"],
                },
                schema=SCHEMA,
            )
            groups.append(Path(inside, f"group-{start:010d}.parquet"))
            table.write_parquet(groups[-1], compression="snappy", statistics=False)
        pl.scan_parquet(groups).sink_parquet(
            partial, compression="zstd", statistics=False, row_group_size=GROUP, metadata=SEAL
        )
    count = pl.scan_parquet(path).select(pl.len()).collect().item()
    return Written(
        count, pl.Series([clean(name, NAME_LENGTH) for name in names[1:]], dtype=pl.String)
    )


def _pair(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """User and item as one number that sorts like both."""
    return (user.astype(np.int64) << 32) | item


def _placed(
    block: pl.DataFrame,
    users: Mapping[str, int],
    items: Mapping[str, int],
    pair: np.ndarray,
    time: np.ndarray,
    names: np.ndarray,
) -> pl.DataFrame:
    """Place among the sorted pairs, and text, of those reviews that are of a kept interaction.

    Writes the names of the block's users into `names`, [users + 1].
    """
    # Ids are from 1, so that a pair with a 0 is none that was kept.
    user, item = (
        np.array([numbers.get(name, 0) for name in block[side].to_list()], np.int64)
        for side, numbers in (("user", users), ("item", items))
    )
    given = block["name"].fill_null("").str.strip_chars() != ""
    told = np.flatnonzero((user > 0) & given.to_numpy())
    # Of equal places the last value stays.
    names[user[told]] = block["name"][told].to_list()
    wanted = _pair(user, item)
    places = np.searchsorted(pair, wanted).clip(max=len(pair) - 1)
    rows = np.flatnonzero((pair[places] == wanted) & (time[places] == block["time"].to_numpy()))
    cleaned = [clean(text, LENGTH) for text in block["text"][rows]]
    return pl.DataFrame(
        {"place": places[rows], "text": cleaned}, schema={"place": pl.Int32, "text": pl.String}
    ).drop_nulls()


def _runs(blocks: Iterator[pl.DataFrame], folder: Path) -> list[pl.LazyFrame]:
    """All rows in tables that are each sorted by place, rows of one place in their order."""
    runs: list[pl.LazyFrame] = []
    waiting: list[pl.DataFrame] = [pl.DataFrame(schema={"place": pl.Int32, "text": pl.String})]

    def sort() -> pl.DataFrame:
        table = pl.concat(waiting).sort("place", maintain_order=True)
        waiting.clear()
        return table

    size = 0
    for block in blocks:
        waiting.append(block)
        size += block.estimated_size()
        if size > RUN:
            file = folder / f"run-{len(runs):06d}.parquet"
            sort().write_parquet(file, compression="snappy", row_group_size=RUN_ROWS)
            runs.append(pl.scan_parquet(file))
            size = 0
    return [*runs, sort().lazy()] if waiting else runs


def _group(runs: list[pl.LazyFrame], start: int) -> pl.DataFrame:
    """One text a place, the last, of `GROUP` places from `start`, in order."""
    wanted = pl.col("place").is_between(start, start + GROUP, closed="left")
    rows = pl.concat([run.filter(wanted) for run in runs]).collect()
    return rows.unique("place", keep="last", maintain_order=True).sort("place")
