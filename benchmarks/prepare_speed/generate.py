"""Write synthetic ratings in the MovieLens format, or with string ids in that of Amazon Books 2023.

Users have MovieLens-25M-like numbers of ratings (at least 20, median 71, mean 154, a long tail),
items are drawn from a shifted Zipf law, each user rates within a few sessions, and the rows of a
user stand together, as in the published files: MovieLens sorts them by item, Amazon by time, newest
first.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl

ROWS = 25_000_095


def history_lengths(rng: np.random.Generator, rows: int, least: int, mean: float) -> np.ndarray:
    """Ratings of each user, (users,), which sum to `rows`."""
    counts = []
    left = rows
    while left:
        more = least + np.floor(rng.lognormal(np.log(mean - least) - 0.98, 1.4, 100_000))
        more = np.minimum(more, 32_000).astype(np.int64)
        more = more[: np.searchsorted(more.cumsum(), left) + 1]
        more[-1] -= max(0, more.sum() - left)
        counts.append(more)
        left -= more.sum()
    return np.concatenate(counts)


def interactions(rows: int, items: int, least: int, mean: float, seed: int) -> pl.DataFrame:
    """Distinct (user, item) pairs with a rating and a time, sorted by user and item."""
    rng = np.random.default_rng(seed)
    # Repeated draws of a pair are dropped, so more are drawn than wanted.
    user = np.repeat(*_indexed(history_lengths(rng, int(rows * 1.35), least, mean)))
    popularity = 1 / (np.arange(items) + items / 600) ** 1.05
    edges = np.cumsum(popularity / popularity.sum())
    item = np.searchsorted(edges, rng.random(len(user))).clip(max=items - 1)
    # Popular items are spread over the ids.
    item = rng.permutation(items)[item]
    pair = np.unique(user * items + item)
    # The last users fall off, so that every history stays whole.
    pair = pair[:rows]
    user, item = np.divmod(pair, items)
    users = user[-1] + 1
    start = rng.integers(820_000_000, 1_560_000_000, users)
    session = rng.integers(0, 4, len(user)) * 7_000_000
    rating = rng.choice(np.arange(1, 11, dtype=np.float32), len(user), p=SHARES) / 2
    return pl.DataFrame(
        {
            "user": user.astype(np.int32) + 1,
            "item": item.astype(np.int32) + 1,
            "rating": rating,
            "timestamp": start[user] + session + rng.integers(0, 4000, len(user)),
        }
    )


SHARES = np.array([0.02, 0.03, 0.02, 0.07, 0.05, 0.2, 0.13, 0.26, 0.08, 0.14])


def _indexed(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(counts)), counts


def movielens(rows: int, path: Path, seed: int = 1) -> None:
    """ratings.csv of MovieLens: integer ids, times in seconds."""
    frame = interactions(rows, 59_000, 20, 154.0, seed)
    frame.columns = ["userId", "movieId", "rating", "timestamp"]
    frame.write_csv(path, float_precision=1)


def books(rows: int, path: Path, seed: int = 2) -> None:
    """Books.csv of Amazon Reviews 2023: ids of 28 and 10 characters, times in milliseconds."""
    frame = interactions(rows, 500_000, 1, 12.2, seed)
    rng = np.random.default_rng(seed)

    def names(count: int, prefix: str, length: int) -> pl.Series:
        letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", dtype="S1")
        text = letters[rng.integers(0, 32, (count + 1, length - len(prefix)))]
        joined = text.view(f"S{length - len(prefix)}").ravel().astype(str)
        return prefix + pl.Series(joined)

    user, item = names(frame["user"].max(), "A", 28), names(500_000, "B0", 10)
    frame.sort("user", "timestamp", descending=[False, True]).select(
        user[frame["user"]].alias("user_id"),
        item[frame["item"]].alias("parent_asin"),
        pl.col("rating").ceil(),
        pl.col("timestamp") * 1000 + 7,
    ).write_csv(path, float_precision=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=("movielens", "books"), default="movielens")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    {"movielens": movielens, "books": books}[arguments.format](arguments.rows, arguments.out)
