"""Reading what the audits need, and refusing what they cannot use.

In: parquet tables and explanations.jsonl. Out: data frames of before and after training, aligned.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from shielded_recrl.errors import UserError
from shielded_recrl.files import read_jsonl

RANKING_COLUMNS = ("step", "user", "position", "item")
TEXT_KEYS = ("step", "user", "position", "text")


def read_table(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """Read columns of a parquet file, in full."""
    try:
        return pl.read_parquet(path, columns=list(columns))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with the stage before") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{path}: not a parquet file with columns {', '.join(columns)} ({reason}); make it again"
        ) from error


def read_texts(path: Path) -> pl.DataFrame:
    """Read the columns step, user, position, text of explanations.jsonl."""
    try:
        rows = read_jsonl(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with `rl evaluate`") from None
    for number, row in enumerate(rows, start=1):
        for key in TEXT_KEYS:
            if not isinstance(row.get(key), str if key == "text" else int):
                raise UserError(
                    f"{path}, line {number}: {key!r} is missing or of a wrong type; "
                    "make the file again with `rl evaluate`"
                )
    schema = {key: pl.String if key == "text" else pl.Int64 for key in TEXT_KEYS}
    return pl.DataFrame([{key: row[key] for key in TEXT_KEYS} for row in rows], schema=schema)


def before_and_after(rows: pl.DataFrame, path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of step 0 and of the last step, in equal order of user and position.

    Raises:
        UserError: a step is missing, or the two do not cover the same users and positions.
    """
    if not len(rows) or rows["step"].min() != 0 or rows["step"].max() == 0:
        raise UserError(f"{path}: needs rows of step 0 and of a later step; evaluate a trained run")
    before, after = (
        rows.filter(pl.col("step") == step).sort("user", "position")
        for step in (0, rows["step"].max())
    )
    keys = ["user", "position"]
    if not before.select(keys).equals(after.select(keys)):
        raise UserError(
            f"{path}: step 0 and step {after['step'][0]} cover different users or positions; "
            "evaluate the run again"
        )
    return before, after


def indices(served: pl.Series, items: pl.Series, path: Path) -> np.ndarray:
    """Places from 0 of items [N] in the sorted catalogue; `path` is named if one is not in it."""
    known, found = items.to_numpy(), served.to_numpy()
    places = np.searchsorted(known, found).clip(max=len(known) - 1)
    if (strangers := found[known[places] != found]).size:
        raise UserError(
            f"{path}: item {strangers[0]} is not in the catalogue; give the run's own --data"
        )
    return places
