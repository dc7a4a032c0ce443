"""Raw interaction files to one table: who met what, when, how strongly.

In: a file as its owner publishes it. Out: `RawInteractions`, columns in file order

    user, item   int32 codes of the ids in the source
    weight       float32, rating in stars, or hours played
    time         int64, in the source's own resolution (0 where there is none)

and what became of each row that is not among them. A file is read in blocks of whole lines. A block is
parsed at once, strictly; only where that fails are its lines looked at one by one, and the bad ones
put into quarantine. Both ways accept the same rows with the same values. The texts of reviews and
the names below them are left out of all this: `review_texts` reads them, in a pass of their own, for
those who want them.

Sources: Amazon reviews (JSON lines of 2014 and 2018, csv of 2023), MovieLens (ratings.csv, alone or
in the published zip), Steam-200K (csv without header).
"""

from __future__ import annotations

import codecs
import csv
import ctypes
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar

import numpy as np
import polars as pl
from tqdm import tqdm

from shielded_recrl.data.archive import MAX_LINE, Unpacked, extracted
from shielded_recrl.data.quarantine import LENGTH, Quarantine
from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import sha256

COLUMNS = ("user", "item", "weight", "time")
REVIEW = ("reviewerID", "asin", "overall", "unixReviewTime")
# What people wrote in a review, and the column it is read into.
WRITTEN = MappingProxyType({"reviewText": "text", "reviewerName": "name"})
REVIEW_SCHEMA = {
    "user": pl.String,
    "item": pl.String,
    "time": pl.Int64,
    "text": pl.String,
    "name": pl.String,
}
# One of them that is neither a string nor null.
NOT_WRITTEN = re.compile(rf'"(?:{"|".join(WRITTEN)})"\s*:\s*[^"n\s]'.encode())
# The first half of a character, and then no second one.
HALVES = re.compile(rb"\\u[dD][89abAB]..\\u(?![dD][c-fC-F])")
RATING_2023 = ("user_id", "parent_asin", "rating", "timestamp")
RATING_ML = ("userId", "movieId", "rating", "timestamp")
BLOCK = 8 << 20
STARS = 5.0
# More than a hundred years; a sum of such hours stays a number.
HOURS = 1_000_000.0
# Ids up to this many times the rows are codes as they are: a table of them stays small.
SPREAD = 4
MAX_ID = 2**31 - 1
MAX_TIME = 2**63 - 1

T = TypeVar("T")
Row = tuple[int | str, int | str, float, int]


class BadRow(Exception):
    """A row that cannot be read; the message is the reason that is counted."""


@dataclass(frozen=True)
class RawInteractions:
    """Readable rows of a raw file.

    Attributes:
        columns: user, item, weight and time of each row, in file order.
        users: codes of users -> their ids in the source.
        items: codes of items -> their ids in the source.
        read: rows in the file.
        file: name of the file in the quarantine.
        expected: the format, in words, for error messages.
        sha256: hex digest of the file as it lies on disk.
        merged: rows folded into another row of the same user and item by the format itself.
        ticks: ticks of `time` in a second.
        sequential: whether the source tells an order.
        texts: reads the file again, for the texts of its reviews and the names of those who wrote
            them; None where it has none.
    """

    columns: dict[str, np.ndarray]
    users: Ids
    items: Ids
    read: int
    file: str
    expected: str
    sha256: str
    merged: int = 0
    ticks: int = 1
    sequential: bool = True
    texts: Callable[[], Iterator[pl.DataFrame]] | None = None


class Columns:
    """The columns of `COLUMNS`, which grow at their end.

    Memory that was never written to costs nothing, so there is always some to spare.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._columns = [np.empty(1 << 20, kind) for kind in ("i4", "i4", "f4", "i8")]

    def expect(self, rows: int) -> None:
        """Make room for this many rows in all."""
        for place, column in enumerate(self._columns):
            if rows > len(column):
                grown = np.empty(rows, column.dtype)
                grown[: self.rows] = column[: self.rows]
                self._columns[place] = grown

    def append(self, *values: pl.Series) -> None:
        """Add rows: a value of each column, in the order of `COLUMNS`."""
        rows = self.rows + len(values[0])
        if rows > len(self._columns[0]):
            self.expect(3 * rows // 2)
        for column, series in zip(self._columns, values, strict=True):
            column[self.rows : rows] = series.to_numpy()
        self.rows = rows

    def whole(self) -> dict[str, np.ndarray]:
        """The columns by name."""
        return {
            name: column[: self.rows] for name, column in zip(COLUMNS, self._columns, strict=True)
        }


class Ids:
    """Ids of one side as int32 codes: numbers are their own codes, text is numbered as it comes."""

    def __init__(self, numeric: bool) -> None:
        self.numeric = numeric
        self.dtype = pl.Int32 if numeric else pl.Categorical(pl.Categories.random())
        # Polars forgets the numbering of a text with the last series that has it.
        self._alive = pl.Series(dtype=self.dtype)
        self._numbers: np.ndarray | None = None

    def codes(self, values: pl.Series) -> pl.Series:
        """Codes, int32, of a column of `dtype`, or of text."""
        return values if self.numeric else values.cast(self.dtype).to_physical().cast(pl.Int32)

    def compact(self, codes: np.ndarray) -> np.ndarray:
        """Codes that a table can be indexed by, also where a source uses few of many numbers."""
        if not self.numeric or codes.max(initial=0) <= SPREAD * len(codes):
            return codes
        self._numbers, compact = np.unique(codes, return_inverse=True)
        return compact.astype(np.int32)

    def source(self, codes: np.ndarray) -> pl.Series:
        """The ids that have these codes: numbers, or text."""
        if self.numeric:
            return pl.Series(codes if self._numbers is None else self._numbers[codes])
        return pl.Series(codes.astype(np.uint32)).cat.to(self.dtype).cast(pl.String)


@dataclass(frozen=True)
class Format:
    """How the rows of a file are read.

    Attributes:
        users: codes of users.
        items: codes of items.
        block: whole lines -> the columns of `COLUMNS`; null, or a `PolarsError`, where one is bad.
        line: one line -> its row, or a `BadRow`.
    """

    users: Ids
    items: Ids
    block: Callable[[bytes], pl.DataFrame]
    line: Callable[[str], Row]


def load_books(path: Path, quarantine: Quarantine, folder: Path) -> RawInteractions:
    """Amazon reviews: JSON lines (2014, 2018) or a csv with the header of 2023 (times in ms)."""
    if ".csv" in path.suffixes:
        return _ratings(path, str(path), quarantine, RATING_2023, numeric=False, ticks=1000)
    digest = hashlib.sha256()
    kind = Format(Ids(False), Ids(False), _review_block, _review_line)
    columns, read = _collect(
        ahead(blocks(path, digest)), path.stat().st_size, kind, str(path), 1, quarantine
    )
    expected = f"JSON lines with {', '.join(REVIEW)}"
    found = digest.hexdigest()
    return RawInteractions(
        columns,
        kind.users,
        kind.items,
        read,
        str(path),
        expected,
        found,
        texts=partial(review_texts, path, found),
    )


def load_ml25m(path: Path, quarantine: Quarantine, folder: Path) -> RawInteractions:
    """MovieLens ratings.csv, alone or inside the published zip."""
    if path.suffix != ".zip":
        return _ratings(path, str(path), quarantine, RATING_ML, numeric=True)
    name = f"{path}/ratings.csv"
    with extracted(path, "ratings.csv", folder) as unpacked:
        return _ratings(unpacked, name, quarantine, RATING_ML, numeric=True, digest=sha256(path))


def load_steam(path: Path, quarantine: Quarantine, folder: Path) -> RawInteractions:
    """Steam-200K: one interaction per user and title, its weight the hours of all play rows.

    The 1.0 of a purchase row is not hours: a game bought and never played weighs 0.
    """
    digest = hashlib.sha256()
    kind = Format(Ids(False), Ids(False), _play_block, _play_line)
    plays, read = _collect(
        blocks(path, digest), path.stat().st_size, kind, str(path), 1, quarantine
    )
    games = (
        pl.DataFrame(plays)
        .group_by("user", "item", maintain_order=True)
        .agg(pl.col("weight").sum(), pl.col("time").first())
    )
    return RawInteractions(
        {name: games[name].to_numpy() for name in COLUMNS},
        kind.users,
        kind.items,
        read,
        str(path),
        "rows of user, title, purchase or play, hours, 0, without a header",
        digest.hexdigest(),
        merged=len(plays["user"]) - len(games),
        sequential=False,
    )


LOADERS: dict[str, Callable[[Path, Quarantine, Path], RawInteractions]] = {
    "books": load_books,
    "ml25m": load_ml25m,
    "steam": load_steam,
}


def review_texts(path: Path, digest: str) -> Iterator[pl.DataFrame]:
    """The texts in JSON lines of reviews, and who wrote them, a block at a time.

    The rows are those that `load_books` accepts; those with neither text nor name are left out.

    Args:
        path: the file.
        digest: its sha256 when the interactions were read.

    Yields:
        user and item, as in the source, time, and text and name, null where there is none, of each
        row, in file order.

    Raises:
        UserError: the file changed since.
    """
    running = hashlib.sha256()
    kind = Format(Ids(False), Ids(False), _text_block, _review_line)
    for piece, _, table in ahead(_strictly(piece, kind) for piece in blocks(path, running)):
        if table is None:
            table = pl.DataFrame(_text_rows(piece), schema=REVIEW_SCHEMA, orient="row")
        yield table.select(*REVIEW_SCHEMA).filter(
            pl.any_horizontal(pl.col(*WRITTEN.values()).fill_null("") != "")
        )
    if running.hexdigest() != digest:
        raise UserError(f"{path}: changed while it was being read; run again")


class _Hashed:
    """A binary file that digests what is read from it."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash) -> None:
        self._file = file
        self._digest = digest

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        return data


def blocks(path: Path, digest: hashlib._Hash, size: int = BLOCK) -> Iterator[bytes]:
    """Whole lines of a gzip (`.gz`) or plain file, about `size` bytes at a time.

    `digest` takes in the file as it lies on disk. A byte order mark before the first line is left
    out, and the last line gets its line end if it has none.

    Raises:
        UserError: no gzip file where the name says so, a truncated one or a bomb, or a line longer
            than `MAX_LINE`.
    """
    with (
        path.open("rb", buffering=0) as file,
        tqdm(
            total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        hashed = _Hashed(file, digest)
        packed = gzip.GzipFile(fileobj=hashed) if path.suffix == ".gz" else nullcontext(hashed)
        rest, mark = b"", codecs.BOM_UTF8
        unpacked = Unpacked(path, file)
        try:
            with packed as stream:
                while piece := stream.read(size):
                    unpacked.add(len(piece))
                    bar.update(file.tell() - bar.n)
                    cut = piece.rfind(b"\n") + 1
                    if cut:
                        yield (rest + piece[:cut]).removeprefix(mark)
                        rest, mark = piece[cut:], b""
                    else:
                        rest += piece
                    if len(rest) > MAX_LINE:
                        raise UserError(
                            f"{path}: a line longer than {MAX_LINE >> 20} MiB, it starts with "
                            f"{rest[:40]!r}; expected one row a line"
                        )
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path}: damaged gzip file ({first_line(error)}); fetch it again"
            ) from None
        if rest:
            yield rest.removeprefix(mark) + b"\n"


def ahead(values: Iterator[T]) -> Iterator[T]:
    """The same values, the next one being made while one is worked on."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, values, end)
        while (value := coming.result()) is not end:
            coming = pool.submit(next, values, end)
            yield value


def _collect(
    pieces: Iterator[bytes],
    size: int,
    kind: Format,
    file: str,
    number: int,
    quarantine: Quarantine,
) -> tuple[dict[str, np.ndarray], int]:
    """All good rows of blocks of lines as columns, and the number of rows.

    Args:
        pieces: whole lines.
        size: bytes of the file, from which its rows are guessed.
        kind: how to read them.
        file: name in the quarantine.
        number: line number of the first line.
        quarantine: takes the bad rows.
    """
    columns = Columns()
    read = 0
    for piece, lines, table in ahead(_strictly(piece, kind) for piece in pieces):
        if table is None:
            table, rows = _line_by_line(piece, kind, file, number, quarantine)
            read += rows
        else:
            read += lines
        number += lines
        if not columns.rows:
            columns.expect(int(1.05 * lines * size / max(1, len(piece))))
        user, item = kind.users.codes(table["user"]), kind.items.codes(table["item"])
        columns.append(user, item, table["weight"], table["time"])
    found = columns.whole()
    found["user"] = kind.users.compact(found["user"])
    found["item"] = kind.items.compact(found["item"])
    return found, read


def _strictly(piece: bytes, kind: Format) -> tuple[bytes, int, pl.DataFrame | None]:
    """A block, the number of its lines, and its rows; None if a line is bad or blank."""
    lines = int(np.count_nonzero(np.frombuffer(piece, np.uint8) == ord("\n")))
    try:
        table = kind.block(piece)
    except pl.exceptions.PolarsError:
        return piece, lines, None
    return piece, lines, table if len(table) == lines and _plausible(table) else None


def _line_by_line(
    piece: bytes, kind: Format, file: str, number: int, quarantine: Quarantine
) -> tuple[pl.DataFrame, int]:
    """The good rows of a block, and the number of its rows; blank lines are none."""
    rows: list[Row] = []
    read = 0
    for position, line in enumerate(piece.split(b"\n")[:-1]):
        if not line.strip():
            continue
        read += 1
        try:
            rows.append(parsed(line, kind.line))
        except BadRow as error:
            text = line[: 4 * LENGTH].decode("utf-8", "replace")
            quarantine.add(file, number + position, str(error), text)
    types = [pl.Int32 if side.numeric else pl.String for side in (kind.users, kind.items)]
    schema = dict(zip(COLUMNS, (*types, pl.Float32, pl.Int64), strict=True))
    return pl.DataFrame(rows, schema=schema, orient="row"), read


def _plausible(table: pl.DataFrame) -> bool:
    """Whether all rows have ids, a rating of at most 5 stars, and a time."""
    if any(table[name].null_count() for name in COLUMNS):
        return False
    weight, time, user, item = (table[name] for name in ("weight", "time", "user", "item"))
    # A NaN is larger than all numbers here.
    return len(table) == 0 or bool(
        weight.min() > 0
        and (weight <= STARS).all()
        and time.min() > 0
        and all(ids.dtype != pl.Int32 or ids.min() >= 0 for ids in (user, item))
        and all(ids.dtype != pl.String or (ids != "").all() for ids in (user, item))
    )


def parsed(line: bytes, parse: Callable[[str], T]) -> T:
    """What `parse` makes of the text of a line.

    Raises:
        BadRow: the line is no UTF-8, or `parse` refuses it.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise BadRow("not UTF-8") from None
    return parse(text)


def _numbers(stars: Any, time: Any) -> tuple[float, int]:
    """A rating, as float32 holds it, and a time, if they are ones."""
    if isinstance(time, float) and not time.is_integer():
        raise BadRow("unreadable number")
    stars, time = _float32(stars, "unreadable number"), _number(time, int, "unreadable number")
    if time > MAX_TIME:
        raise BadRow("unreadable number")
    if not 0 < stars <= STARS:
        raise BadRow("rating out of range")
    if time <= 0:
        raise BadRow("time not positive")
    return stars, time


def _float32(value: Any, reason: str) -> float:
    """A number as float32 holds it: 5.0000000001 is 5, 1e-60 is 0, and 1e39 is infinite."""
    return ctypes.c_float(_number(value, float, reason)).value


def _number(value: Any, kind: Callable[[Any], T], reason: str) -> T:
    """A number of a text, or of JSON."""
    # Python also reads 1_0, the digits of other scripts, and True.
    odd = isinstance(value, str) and ("_" in value or not value.isascii())
    if odd or isinstance(value, bool):
        raise BadRow(reason)
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise BadRow(reason) from None


def header(line: bytes, columns: tuple[str, ...], file: str) -> list[str]:
    """The names in the first line of a csv.

    Args:
        line: the line, without its line end.
        columns: names that have to be among them.
        file: what to call the file.

    Raises:
        UserError: one of `columns` is missing.
    """
    text = line.decode("utf-8", "replace").removesuffix("\r")
    try:
        names = [name.strip() for name in next(csv.reader([text]), [])]
    except csv.Error:
        names = []
    if missing := [column for column in columns if column not in names]:
        raise UserError(
            f"{file}: header is {text[:80]!r}, without {', '.join(missing)}; expected the columns "
            f"{', '.join(columns)} (a file without a header needs one)"
        )
    return names


def fields(line: str, width: int) -> list[str]:
    """The fields of one csv line.

    Args:
        line: the line, without its line feed.
        width: how many there have to be.

    Raises:
        BadRow: there are more or fewer, or quotes are left open.
    """
    line = line.removesuffix("\r")
    try:
        found = next(csv.reader([line], strict=True)) if '"' in line else line.split(",")
    except csv.Error:
        raise BadRow("unreadable quotes") from None
    if len(found) != width:
        raise BadRow("missing field" if len(found) < width else "too many fields")
    return found


def _ratings(
    path: Path,
    file: str,
    quarantine: Quarantine,
    columns: tuple[str, ...],
    numeric: bool,
    ticks: int = 1,
    digest: str | None = None,
) -> RawInteractions:
    """A csv with header that has the named columns: user, item, rating, time."""
    running = hashlib.sha256()
    pieces = ahead(blocks(path, running))
    first, _, rest = next(pieces, b"").partition(b"\n")
    names = header(first, columns, file)
    places = [names.index(column) for column in columns]
    kind = _csv_format(places, len(names), numeric)
    found, read = _collect(chain([rest], pieces), path.stat().st_size, kind, file, 2, quarantine)
    expected = f"a csv with the columns {', '.join(columns)}"
    return RawInteractions(
        found,
        kind.users,
        kind.items,
        read,
        file,
        expected,
        digest or running.hexdigest(),
        ticks=ticks,
    )


def _csv_format(places: list[int], width: int, numeric: bool) -> Format:
    users, items = Ids(numeric), Ids(numeric)
    wanted = dict(zip(places, (users.dtype, items.dtype, pl.Float32, pl.Int64), strict=True))
    schema = {str(place): wanted.get(place, pl.String) for place in range(width)}
    order = [str(place) for place in places]

    def block(lines: bytes) -> pl.DataFrame:
        # Polars drops a mark at the start, and a carriage return at the end of a field.
        if b'"' in lines or lines.startswith(codecs.BOM_UTF8) or _lone_returns(lines):
            raise pl.exceptions.ComputeError("these are read line by line")
        table = pl.read_csv(lines, has_header=False, schema=schema, quote_char=None)
        return table.select(pl.col(order).name.map(lambda name: COLUMNS[order.index(name)]))

    def line(text: str) -> Row:
        row = fields(text, width)
        user, item, stars, time = (row[place] for place in places)
        if not (user and item and stars and time):
            raise BadRow("missing field")
        if numeric:
            user, item = _numeric_id(user), _numeric_id(item)
        return user, item, *_numbers(stars, time)

    return Format(users, items, block, line)


def _lone_returns(lines: bytes) -> bool:
    """Whether there is a carriage return that ends no line."""
    return b"\r" in lines and lines.count(b"\r") != lines.count(b"\r\n")


def _numeric_id(text: str) -> int:
    value = _number(text, int, "id is no number")
    if not 0 <= value <= MAX_ID:
        raise BadRow("id out of range")
    return value


def _review_block(lines: bytes, more: Mapping[str, Any] = MappingProxyType({})) -> pl.DataFrame:
    # Polars makes a character of the first half of one and whatever is spelled behind it.
    if (b"\\ud" in lines or b"\\uD" in lines) and HALVES.search(lines):
        raise pl.exceptions.ComputeError("such characters are read line by line")
    types = (pl.String, pl.String, pl.Float32, pl.Int64)
    table = pl.read_ndjson(lines, schema={**dict(zip(REVIEW, types, strict=True)), **more})
    for name in REVIEW[:2]:
        ids = table[name]
        # A list or an object comes as its source text, half a character as NUL, and 1e3 as 1000.
        odd = ids.str.contains("^[\\[{]|\0").any()
        digits = not odd and ids.str.contains("^-?[0-9]").any()
        if odd or (digits and re.search(rf'"{name}"\s*:\s*-?\d+[.eE]'.encode(), lines)):
            raise pl.exceptions.ComputeError("such ids are read line by line")
    return table.rename(dict(zip(REVIEW, COLUMNS, strict=True)))


def _text_block(lines: bytes) -> pl.DataFrame:
    """The columns of a block of reviews, with their texts and names; null where there is none."""
    table = _review_block(lines, dict.fromkeys(WRITTEN, pl.String)).rename(WRITTEN)
    # As with ids: half a character comes as NUL, and what is no text as its source.
    halves = any(table[name].str.contains("\0", literal=True).any() for name in WRITTEN.values())
    if halves or NOT_WRITTEN.search(lines):
        raise pl.exceptions.ComputeError("such texts are read line by line")
    return table


def _text_rows(piece: bytes) -> Iterator[tuple[str, str, int, str | None, str | None]]:
    """User, item, time, text and name of the good rows of a block."""
    for line in piece.split(b"\n")[:-1]:
        try:
            user, item, _, time = parsed(line, _review_line)
        except BadRow:
            # In quarantine since the first pass.
            continue
        review = _json(line)
        values = (review.get(key) for key in WRITTEN)
        text, name = (
            value.encode("utf-8", "replace").decode() if isinstance(value, str) else None
            for value in values
        )
        yield user, item, time, text, name


def _json(line: bytes | str) -> Any:
    """The value of a line, as polars reads it: NaN and Infinity, which Python adds, are no JSON."""
    return json.loads(line, object_pairs_hook=_first, parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which the first of equal keys counts, as it does for polars."""
    return dict(reversed(pairs))


def _review_line(line: str) -> Row:
    try:
        review = _json(line)
    except (ValueError, RecursionError):
        raise BadRow("not JSON") from None
    if not isinstance(review, dict):
        raise BadRow("not JSON")
    user, item, stars, time = (review.get(key) for key in REVIEW)
    if user in (None, "") or item in (None, "") or stars is None or time is None:
        raise BadRow("missing field")
    return _text(user), _text(item), *_numbers(stars, time)


def _text(value: Any) -> str:
    if not isinstance(value, str | int):
        raise BadRow("id is no text")
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON may spell half a character.
        raise BadRow("id is no text") from None
    return text


def _play_block(lines: bytes) -> pl.DataFrame:
    """Steam's files are small, and their titles hold quotes and commas."""
    raise pl.exceptions.ComputeError("titles are read line by line")


def _play_line(line: str) -> Row:
    user, item, behaviour, hours, _ = fields(line, 5)
    if not (user and item and behaviour and hours):
        raise BadRow("missing field")
    if behaviour not in ("purchase", "play"):
        raise BadRow("neither purchase nor play")
    played = _float32(hours, "unreadable hours")
    if not 0 <= played <= HOURS:
        raise BadRow("unreadable hours")
    return user, item, played if behaviour == "play" else 0.0, 0
