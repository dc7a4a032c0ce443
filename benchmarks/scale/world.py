"""Write a MovieLens-format world of any number of users: ratings.csv and movies.csv.

Every user has 10 to 29 ratings (mean about 19) of distinct items; items follow a shifted Zipf law.
There is nothing to learn in it: it is for timing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl

ITEMS = 10_000
SHORTEST, LONGEST = 10, 29
GENRES = ("Drama", "Comedy", "Thriller", "Documentary", "Adventure", "Romance")
FIRST = ("Silent", "Golden", "Hidden", "Broken", "Distant", "Burning", "Endless", "Paper")
SECOND = ("River", "Garden", "Harbour", "Mirror", "Winter", "Station", "Letter", "Shadow")
# Users drawn at a time: what bounds the memory.
BLOCK = 100_000


def write_world(folder: Path, users: int, seed: int = 42) -> None:
    """Write the two files, users in blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    popularity = 1 / (np.arange(ITEMS) + 30)
    edges = np.cumsum(popularity / popularity.sum())
    with (folder / "ratings.csv").open("wb") as file:
        for start in range(0, users, BLOCK):
            counts = rng.integers(SHORTEST, LONGEST + 1, min(BLOCK, users - start))
            user = np.repeat(np.arange(start, start + len(counts)), counts)
            item = np.searchsorted(edges, rng.random(len(user))).clip(max=ITEMS - 1)
            pairs = np.unique(user * ITEMS + item)
            user, item = np.divmod(pairs, ITEMS)
            pl.DataFrame(
                {
                    "userId": user + 1,
                    "movieId": item + 1,
                    "rating": rng.integers(8, 11, len(pairs)) / 2,
                    "timestamp": rng.integers(820_000_000, 1_560_000_000, len(pairs)),
                }
            ).write_csv(file, include_header=start == 0)
    pl.DataFrame(
        {
            "movieId": np.arange(1, ITEMS + 1),
            "title": [
                f"The {FIRST[i % 8]} {SECOND[i // 8 % 8]} {i // 64} ({1950 + i % 70})"
                for i in range(ITEMS)
            ],
            "genres": [f"{GENRES[i % 6]}|{GENRES[(i // 6) % 6]}" for i in range(ITEMS)],
        }
    ).write_csv(folder / "movies.csv")


if __name__ == "__main__":
    write_world(Path(sys.argv[1]), int(sys.argv[2]))
