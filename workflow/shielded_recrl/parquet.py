"""Tables of parquet files, read by the one who knows what they must hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import intact

Found = TypeVar("Found")


def read_parquet(
    path: Path,
    columns: Mapping[str, Any],
    nullable: Collection[str] = (),
    made_by: str = "python -m shielded_recrl.data",
) -> pl.DataFrame:
    """Read the named columns, checking that they have these types and no null.

    Args:
        path: parquet file.
        columns: name -> polars type.
        nullable: columns that may hold nulls all the same.
        made_by: the command that makes the file, for errors.

    Raises:
        UserError: the file is missing or damaged, or a column is.
    """
    schema = read_schema(path, made_by)
    for name, kind in columns.items():
        if schema.get(name) != kind:
            raise UserError(
                f"{path}: expected column {name!r} of type {kind}, "
                f"found {schema.get(name, 'none')}; make it again with `{made_by}`"
            )
    frame = _whole(path, made_by, lambda: pl.read_parquet(path, columns=list(columns)))
    for name in columns:
        if name not in nullable and frame[name].null_count():
            row = int(frame[name].is_null().arg_true()[0])
            raise UserError(
                f"{path}: column {name!r} is null in row {row}; every row needs one, "
                f"so make the file again with `{made_by}`"
            )
    return frame


def read_schema(path: Path, made_by: str) -> Mapping[str, pl.DataType]:
    """Name and type of each column of a file that is whole.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; make it with `{made_by}`")
    return _whole(path, made_by, lambda: pl.read_parquet_schema(intact(path)))


def _whole(path: Path, made_by: str, read: Callable[[], Found]) -> Found:
    try:
        return read()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path}: not a whole parquet file ({first_line(error)}); delete it and make it again "
            f"with `{made_by}`"
        ) from error
