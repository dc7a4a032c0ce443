"""The table of judged responses: gold, sampled and corrupted ones with the scores of each judge.

    dialogue, turn   the turn of the recommender that is answered
    split            of its dialogue
    kind             gold, sampled, or corrupted:<how>
    text             in slot form
    <judge>_<head>   in [0, 1]; null where the judge was not asked or did not answer

In: rows. Out: `judged.parquet`, sealed.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.errors import UserError
from shielded_recrl.files import SEAL, intact, sealed

GOLD, SAMPLED, CORRUPTED = "gold", "sampled", "corrupted:"
KEYS = {
    "dialogue": pl.Int32,
    "turn": pl.Int16,
    "split": pl.String,
    "kind": pl.String,
    "text": pl.String,
}


def columns(judge: str) -> list[str]:
    """Names of a judge's columns."""
    return [f"{judge}_{head}" for head in HEADS]


def judges_of(table: pl.DataFrame) -> list[str]:
    """Judges of a table, in its order."""
    last = f"_{HEADS[-1]}"
    return [name.removesuffix(last) for name in table.columns if name.endswith(last)]


def save_judged(path: Path, table: pl.DataFrame) -> None:
    """Write a table."""
    with sealed(path) as partial:
        table.write_parquet(partial, metadata=SEAL)


def load_judged(path: Path) -> pl.DataFrame:
    """Read a table.

    Raises:
        UserError: it is missing or damaged, lacks a column, or holds a score that is none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `python -m shielded_recrl.dialogue judge`")
    try:
        table = pl.read_parquet(intact(path))
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path}: no readable parquet file ({' '.join(str(error).split())[:200]}); "
            "run judge again"
        ) from None
    for name, kind in KEYS.items():
        if table.schema.get(name) != kind or table[name].null_count():
            raise UserError(f"{path}: no whole column {name} of {kind}; run judge again")
    found = judges_of(table)
    if not found:
        raise UserError(f"{path}: no column of a judge; run judge again")
    for name in (name for judge in found for name in columns(judge)):
        if table.schema.get(name) != pl.Float32:
            raise UserError(f"{path}: no column {name} of Float32; run judge again")
        if not table[name].drop_nulls().is_between(0, 1).all():
            raise UserError(f"{path}: {name} holds what is no number in [0, 1]; run judge again")
    return table
