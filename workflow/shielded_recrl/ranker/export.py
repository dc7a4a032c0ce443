"""Write every user's recommendations under the ids of the source, for use outside this project.

In: a dataset folder and the `states.safetensors` of `evaluate`. Out: one parquet file with a row for
each user and rank: user and item by their source ids, the item's title, rank (from 1) and score. The
history is all interactions but those of the test split, and none of it is recommended again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from shielded_recrl.errors import UserError
from shielded_recrl.files import SEAL, intact, sealed
from shielded_recrl.parquet import read_parquet
from shielded_recrl.ranker.data import load_splits
from shielded_recrl.ranker.evaluation import BLOCK, inner_product_score
from shielded_recrl.ranker.metrics import find

NOTHING = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def main(*, data: Path, states: Path, out: Path, k: int = 10) -> None:
    """Write the top k of every user who has a history.

    Args:
        data: dataset folder, for example results/data/books.
        states: states.safetensors of `evaluate`.
        out: parquet file to write.
        k: length of a list.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if k < 1:
        raise UserError(f"k: expected at least 1, got {k}")
    splits = load_splits(data)
    try:
        tensors = load_file(intact(states))
        items, users = tensors["items"], tensors["test_users"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"{states}: not the states of a ranker ({error}); `ranker evaluate` writes them"
        ) from error
    if (len(users), len(items)) != (splits.n_users + 1, splits.n_items + 1):
        raise UserError(
            f"{states}: {len(users) - 1} users and {len(items) - 1} items, but {data} has "
            f"{splits.n_users} and {splits.n_items}; evaluate the ranker on this dataset again"
        )
    score = inner_product_score(users, items)
    known = np.flatnonzero(splits.histories("test").lengths)
    size = max(1, BLOCK // (splits.n_items + 1))
    blocks = [known[start : start + size] for start in range(0, len(known), size)]
    lists = pl.concat(
        [_lists(score(some), splits.seen_pairs("test", some), some, k) for some in blocks]
    )
    names = {
        side: read_parquet(data / f"{side}s.parquet", {side: pl.Int32, "source_id": pl.String})
        for side in ("user", "item")
    }
    titles = read_parquet(data / "items.parquet", {"item": pl.Int32, "title": pl.String})
    table = (
        lists.join(names["user"].rename({"source_id": "user_id"}), on="user", maintain_order="left")
        .join(names["item"].rename({"source_id": "item_id"}), on="item", maintain_order="left")
        .join(titles, on="item", maintain_order="left")
        .select("user_id", "rank", "item_id", "title", "score")
    )
    with sealed(out) as partial:
        table.write_parquet(partial, metadata=SEAL)
    print(f"wrote {out}: the top {k} of {len(known)} users")


def _lists(
    scores: np.ndarray, seen: tuple[np.ndarray, np.ndarray], users: np.ndarray, k: int
) -> pl.DataFrame:
    """The lists of a block of users as rows of user, rank, item and score."""
    found = find(scores.copy(), NOTHING, seen, k).lists
    places, ranks = np.nonzero(found)
    chosen = found[places, ranks]
    return pl.DataFrame(
        {
            "user": users[places].astype(np.int32),
            "rank": (ranks + 1).astype(np.int32),
            "item": chosen.astype(np.int32),
            "score": scores[places, chosen],
        }
    )
