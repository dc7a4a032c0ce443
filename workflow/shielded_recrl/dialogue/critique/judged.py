"""The table of judged responses: gold, sampled and corrupted ones with the scores of each judge.

    dialogue, turn   the turn of the recommender that is answered
    split            of its dialogue
    kind             gold, sampled, or corrupted:<how>
    text             in slot form
    <judge>_<head>   in [0, 1]; null where the judge was not asked or did not answer

In: rows. Out: `judged.parquet`, sealed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.errors import UserError
from shielded_recrl.files import SEAL, sealed
from shielded_recrl.parquet import read_parquet, read_schema

MADE_BY = "python -m shielded_recrl.dialogue judge"
GOLD, SAMPLED, CORRUPTED = "gold", "sampled", "corrupted:"
EMPTY = f"{CORRUPTED}empty"
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


def judges_of(names: Iterable[str]) -> list[str]:
    """Judges that a table of these columns has, in its order."""
    last = f"_{HEADS[-1]}"
    return [name.removesuffix(last) for name in names if name.endswith(last)]


def save_judged(path: Path, table: pl.DataFrame) -> None:
    """Write a table."""
    with sealed(path) as partial:
        table.write_parquet(partial, metadata=SEAL)


def load_judged(path: Path) -> pl.DataFrame:
    """Read a table.

    Raises:
        UserError: it is missing or damaged, lacks a column, or holds a score that is none.
    """
    found = judges_of(read_schema(path, MADE_BY))
    if not found:
        raise UserError(f"{path}: no column of a judge; make it again with `{MADE_BY}`")
    scores = dict.fromkeys((name for judge in found for name in columns(judge)), pl.Float32)
    table = read_parquet(path, KEYS | scores, nullable=scores, made_by=MADE_BY)
    for name in scores:
        if not table[name].drop_nulls().is_between(0, 1).all():
            raise UserError(
                f"{path}: {name} holds what is no number in [0, 1]; make it again with `{MADE_BY}`"
            )
    return table
