"""Raw interaction files to one table: who met what, when, how strongly.

In: a file as its owner publishes it. Out: `RawInteractions`, a table with the columns

    row    position in the raw file, from 0: the tie-break where times are equal
    user, item   ids as in the source (strings)
    time   in the source's own resolution (null where there is none)
    weight rating in stars, or hours played

and a count of the rows that could not be read, by reason.

Sources: Amazon reviews (JSON lines of 2014 and 2018, csv of 2023), MovieLens (ratings.csv, alone or
in the published zip), Steam-200K (csv without header).
"""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl
from tqdm import tqdm

from shielded_recrl.errors import UserError

SCHEMA = {
    "row": pl.UInt32,
    "user": pl.String,
    "item": pl.String,
    "time": pl.Int64,
    "weight": pl.Float32,
}
REVIEW = ("reviewerID", "asin", "overall", "unixReviewTime")
RATING_2023 = ("user_id", "parent_asin", "rating", "timestamp")
RATING_ML = ("userId", "movieId", "rating", "timestamp")
CHUNK = 200_000
STARS = 5.0


@dataclass(frozen=True)
class RawInteractions:
    """Readable rows of a raw file.

    Attributes:
        frame: table with the columns of `SCHEMA`, in file order.
        read: rows in the file.
        bad: reason -> number of rows that could not be read.
        merged: rows folded into another row of the same user and item by the format itself.
        ticks: ticks of `time` in a second.
        sequential: whether the source tells an order.
        expected: the format, in words, for error messages.
    """

    frame: pl.DataFrame
    read: int
    bad: dict[str, int]
    expected: str
    merged: int = 0
    ticks: int = 1
    sequential: bool = True


def load_books(path: Path) -> RawInteractions:
    """Amazon reviews: JSON lines (2014, 2018) or a csv with the header of 2023 (times in ms)."""
    if ".csv" not in path.suffixes:
        return _reviews(path)
    table = read_csv(path, RATING_2023)
    expected = f"a csv with the columns {', '.join(RATING_2023)}"
    return _ratings(table, RATING_2023, expected, ticks=1000)


def load_ml25m(path: Path) -> RawInteractions:
    """MovieLens ratings.csv, alone or inside the published zip."""
    expected = f"a csv with the columns {', '.join(RATING_ML)}"
    return _ratings(read_csv(path, RATING_ML, "ratings.csv"), RATING_ML, expected)


def load_steam(path: Path) -> RawInteractions:
    """Steam-200K: one interaction per user and title, its weight the hours of all play rows.

    The 1.0 of a purchase row is not hours: a game bought and never played weighs 0.
    """
    expected = "rows of user, title, purchase or play, hours, 0, without a header"
    table = _parse_csv(path, _bytes_or_path(path), header=False)
    if table.width != 5:
        raise UserError(f"{path}: {table.width} columns; expected {expected}")
    table = table.rename(
        dict(zip(table.columns, ("user", "item", "behaviour", "hours", "_"), strict=True))
    )
    hours = pl.col("hours").cast(pl.Float32, strict=False)
    good, bad = _sift(
        table.with_row_index("row"),
        {
            "missing field": _blank("user", "item", "behaviour", "hours"),
            "neither purchase nor play": ~pl.col("behaviour").is_in(["purchase", "play"]),
            "unreadable hours": ~(hours.is_finite() & (hours >= 0)).fill_null(False),
        },
    )
    played = pl.when(pl.col("behaviour") == "play").then(hours).otherwise(0.0)
    frame = (
        good.group_by("user", "item", maintain_order=True)
        .agg(
            pl.col("row").first(),
            pl.lit(None, dtype=pl.Int64).alias("time"),
            played.sum().alias("weight"),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
    )
    return RawInteractions(
        frame, len(table), bad, expected, merged=len(good) - len(frame), sequential=False
    )


LOADERS: dict[str, Callable[[Path], RawInteractions]] = {
    "books": load_books,
    "ml25m": load_ml25m,
    "steam": load_steam,
}


def require_file(path: Path) -> None:
    """Refuse a path that is no file.

    Raises:
        UserError: nothing there, or a folder.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; name the raw file, or fetch it first")


def lines(path: Path) -> Iterator[str]:
    """Lines of a text file, gzip or plain, without blank ones.

    Bytes that are no UTF-8 become U+FFFD.

    Raises:
        UserError: no such file, no gzip file where the name says so, or a truncated one.
    """
    require_file(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as stream:
            for line in tqdm(stream, desc=path.name, unit=" rows", disable=None):
                if not line.isspace():
                    yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); fetch it again") from None


def read_csv(path: Path, columns: tuple[str, ...], member: str | None = None) -> pl.DataFrame:
    """Columns of a csv with header, as strings; `member` is its file name inside a zip.

    Raises:
        UserError: no such file, a damaged one, or a header without these columns.
    """
    table = _parse_csv(path, _bytes_or_path(path, member), header=True)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        found = ",".join(table.columns)[:80]
        raise UserError(
            f"{path}: header is {found!r}; expected the columns {', '.join(columns)} "
            "(a file without a header needs one)"
        )
    return table.select(columns)


def _reviews(path: Path) -> RawInteractions:
    bad: Counter[str] = Counter()
    frames = []
    numbered = enumerate(lines(path))
    read = 0
    while chunk := list(islice(numbered, CHUNK)):
        read += len(chunk)
        rows = []
        for number, line in chunk:
            reason, row = _review(line)
            if reason:
                bad[reason] += 1
            else:
                rows.append((number, *row))
        frames.append(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
    frame = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMA)
    return RawInteractions(frame, read, dict(bad), f"JSON lines with {', '.join(REVIEW)}")


def _review(line: str) -> tuple[str, tuple]:
    """The reason a review cannot be read (empty if it can), and (user, item, time, weight)."""
    try:
        review = json.loads(line)
    except ValueError:
        return "not JSON", ()
    if not isinstance(review, dict):
        return "not JSON", ()
    user, item, stars, time = (review.get(key) for key in REVIEW)
    if not user or not item or stars is None or time is None:
        return "missing field", ()
    try:
        stars, time = float(stars), int(time)
    except (TypeError, ValueError, OverflowError):
        return "unreadable number", ()
    if abs(time) >= 2**63:
        return "unreadable number", ()
    if not 0 < stars <= STARS:
        return "rating out of range", ()
    return "", (str(user), str(item), time, stars)


def _ratings(
    table: pl.DataFrame, columns: tuple[str, ...], expected: str, ticks: int = 1
) -> RawInteractions:
    user, item, rating, time = map(pl.col, columns)
    stars = rating.cast(pl.Float32, strict=False)
    when = time.cast(pl.Int64, strict=False)
    good, bad = _sift(
        table.with_row_index("row"),
        {
            "missing field": _blank(*columns),
            "unreadable number": stars.is_null() | when.is_null(),
            "rating out of range": ~((stars > 0) & (stars <= STARS)).fill_null(False),
        },
    )
    frame = good.select(
        "row", user.alias("user"), item.alias("item"), when.alias("time"), stars.alias("weight")
    )
    return RawInteractions(frame, len(table), bad, expected, ticks=ticks)


def _sift(table: pl.DataFrame, reasons: dict[str, pl.Expr]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Split off the rows for which a reason holds; the first reason that holds is counted."""
    reason = pl.coalesce(
        *(pl.when(test).then(pl.lit(name)) for name, test in reasons.items()), pl.lit("")
    )
    table = table.with_columns(reason.alias("reason"))
    counts = table.filter(pl.col("reason") != "")["reason"].value_counts()
    return (
        table.filter(pl.col("reason") == "").drop("reason"),
        dict(sorted(counts.iter_rows())),
    )


def _parse_csv(path: Path, source: Path | bytes, header: bool) -> pl.DataFrame:
    try:
        return pl.read_csv(
            source,
            has_header=header,
            infer_schema=False,
            truncate_ragged_lines=True,
            encoding="utf8-lossy",
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        detail = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: not a readable csv file ({detail}); fetch it again") from None


def _bytes_or_path(path: Path, member: str | None = None) -> Path | bytes:
    require_file(path)
    if path.suffix != ".zip":
        return path
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if Path(name).name == member]
            if not names:
                raise UserError(f"{path}: no {member} inside; expected the published archive")
            return archive.read(names[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: damaged zip file ({error}); fetch it again") from None


def _blank(*columns: str) -> pl.Expr:
    return pl.any_horizontal(pl.col(columns).is_null() | (pl.col(columns) == ""))
