"""What people wrote about an item: the references that explanations are compared with.

In: reviews.parquet of the data stage, and (user, item) pairs. Out: the references of each pair,

    own      the user's own review of the item, where there is one; it is the only reference then
    others   else reviews of the item by other users, from the training split, at most five, drawn
             with a seed

or none: such a pair cannot be judged by references, and is left out of what needs them. A review
without a Latin letter or a digit is no reference, as ROUGE reads nothing else.

A review of the test split may be a reference, and that is no leak: references are read after the
training has ended, to measure its outcome. No prompt, reward, read-out, ranker or simulator
reads reviews.parquet. Reviews by others come from the training split alone, so that what one
held-out user wrote is not the answer key of another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import intact

COLUMNS = ("user", "item", "split", "text")
# References of a pair without a review of its own. More add little: the best one counts.
MOST = 5
READABLE = re.compile(r"[A-Za-z0-9]")


class References(NamedTuple):
    """References of one (user, item) pair.

    Attributes:
        texts: at least one.
        own: whether it is the user's own review.
    """

    texts: tuple[str, ...]
    own: bool


def load_references(
    path: Path, pairs: Sequence[tuple[int, int]], seed: int, most: int = MOST
) -> list[References | None]:
    """References of each pair, from reviews.parquet; see `pair_references`.

    Raises:
        UserError: the file is missing or has other columns.
    """
    items = pl.Series(sorted({item for _, item in pairs}), dtype=pl.Int32)
    # Reviews of other items are never held in memory.
    wanted = pl.col("item").is_in(items.implode())
    reviews = _read(path, lambda table: table.select(COLUMNS).filter(wanted))
    return pair_references(reviews, pairs, seed, most)


def check_reviews(path: Path) -> None:
    """Read all of reviews.parquet once, so that a damaged file is found before it is needed.

    Raises:
        UserError: the file is missing, damaged or has other columns.
    """
    numbers = [pl.col(name).cast(pl.Int64).sum() for name in ("user", "item")]
    texts = [pl.col(name).str.len_bytes().sum() for name in ("split", "text")]
    _read(path, lambda table: table.select(*numbers, *texts))


def count_reviews(path: Path) -> int:
    """Rows of reviews.parquet.

    Raises:
        UserError: the file is missing or damaged.
    """
    return _read(path, lambda table: table.select(pl.len())).item()


def _read(path: Path, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
    try:
        return query(pl.scan_parquet(intact(path))).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{path}: no table with the columns {', '.join(COLUMNS)} "
            f"({first_line(error)}); run `data prepare` again"
        ) from error


def pair_references(
    reviews: pl.DataFrame, pairs: Sequence[tuple[int, int]], seed: int, most: int = MOST
) -> list[References | None]:
    """References of each pair; None where there are none.

    The draw is keyed by (seed, user, item), so a pair has the same references whatever the others.

    Args:
        reviews: user, item, split and text, one row a user and item.
        pairs: (user, item).
        seed: of the draw.
        most: references of a pair that has no own one.
    """
    reviews = reviews.sort("user", "item")
    by_item: dict[int, list[tuple[int, str, str]]] = {}
    for user, item, split, text in reviews.select(COLUMNS).iter_rows():
        if not READABLE.search(text):
            continue
        by_item.setdefault(item, []).append((user, split, text))
    found: list[References | None] = []
    for user, item in pairs:
        of_item = by_item.get(item, [])
        own = [text for writer, _, text in of_item if writer == user]
        others = [text for writer, split, text in of_item if writer != user and split == "train"]
        if own:
            found.append(References((own[0],), True))
        elif others:
            rng = np.random.default_rng([seed, user, item])
            drawn = np.sort(rng.permutation(len(others))[:most])
            found.append(References(tuple(others[place] for place in drawn), False))
        else:
            found.append(None)
    return found
