"""An interaction set shaped like MovieLens-1M as SASRec uses it, from a seed.

Out: `user item` lines of 6,040 users, 3,416 items and 999,611 interactions, no item twice for a
user. History lengths are log-normal between 20 and 2,300 (MovieLens-1M: mean 165.5, median 96,
quartiles 44 and 208), item popularity follows a shifted Zipf law. There is nothing to learn in it:
it is for timing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

USERS, ITEMS, INTERACTIONS = 6_040, 3_416, 999_611
SHORTEST, LONGEST, SPREAD = 20, 2_300, 1.05


def history_lengths(rng: np.random.Generator) -> np.ndarray:
    """Lengths [USERS] that sum to INTERACTIONS."""
    noise = SPREAD * rng.standard_normal(USERS)

    def lengths(location: float) -> np.ndarray:
        return np.exp(location + noise).clip(SHORTEST, LONGEST).astype(np.int64)

    low, high = np.log(SHORTEST), np.log(LONGEST)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if lengths(middle).sum() <= INTERACTIONS else (low, middle)
    found = lengths(low)
    room = np.flatnonzero(found < LONGEST)
    found[rng.choice(room, INTERACTIONS - found.sum(), replace=False)] += 1
    return found


def histories(seed: int) -> list[np.ndarray]:
    """Items of each user, drawn without replacement by popularity, in random order."""
    rng = np.random.default_rng(seed)
    popularity = -np.log(rng.permutation(ITEMS) + 60.0)
    drawn = []
    for length in history_lengths(rng):
        # The largest of log-weights plus Gumbel noise are a draw without replacement.
        keys = popularity + rng.gumbel(size=ITEMS)
        drawn.append(rng.permutation(np.argpartition(-keys, length)[:length] + 1))
    return drawn


def write(path: Path, seed: int = 0) -> None:
    """Write the lines."""
    rows = enumerate(histories(seed), start=1)
    lines = (f"{user} {item}\n" for user, row in rows for item in row)
    path.write_text("".join(lines))
