"""The seeds of one dataset and variant taken together.

In: rows of the table. Out: one `Cell` for each dataset and variant, in the order of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

from shielded_recrl.report.columns import Row

# The pair that claims are about: the variant with the shield, and the same training without one. The
# study gives variants any name, but these two are those that criteria, tests, pages and figures know.
SHIELDED, UNSHIELDED = "shielded", "no_proj"
# What a dataset's key tells of its source: not which of its files was read, nor how much of it.
NAMES = {"books": "Amazon reviews", "ml25m": "MovieLens", "steam": "Steam"}


class Cell(NamedTuple):
    """All seeds of one dataset and variant."""

    dataset: str
    variant: str
    rows: list[Row]

    def values(self, column: str) -> list[float]:
        """The column's values, without those that are undefined."""
        return [row[column] for row in self.rows if row[column] is not None]

    def mean(self, column: str) -> float | None:
        """Mean over seeds; None where no seed has a value."""
        values = self.values(column)
        return fmean(values) if values else None

    def span(self, column: str) -> tuple[float, float] | None:
        """Smallest and largest value over seeds."""
        values = self.values(column)
        return (min(values), max(values)) if values else None

    def interval(self, column: str) -> tuple[float, float] | None:
        """Hull of the seeds' 95% intervals.

        The seeds share their users, so that their intervals are no independent draws: averaging or
        pooling them would claim more than is known.
        """
        low, high = self.values(f"{column}_low"), self.values(f"{column}_high")
        return (min(low), max(high)) if low and high else None


def cells(rows: Sequence[Row]) -> list[Cell]:
    """Group rows that are sorted by dataset and variant."""
    return [
        Cell(dataset, variant, list(group))
        for (dataset, variant), group in groupby(rows, lambda r: (r["dataset"], r["variant"]))
    ]


def title(row: Row) -> str:
    """Name and users of a row's dataset, with what a reader must know about it.

    >>> title({"dataset": "steam", "users": 3726, "synthetic": True, "sequential": False})
    'Steam, 3,726 users (synthetic data, unordered)'
    """
    marks = ["synthetic data"] * row["synthetic"] + ["unordered"] * (not row["sequential"])
    name = f"{NAMES.get(row['dataset'], row['dataset'])}, {row['users']:,} users"
    return name + (f" ({', '.join(marks)})" if marks else "")
