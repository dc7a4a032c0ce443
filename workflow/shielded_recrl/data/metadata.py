"""Raw metadata files to one table of items: source_id, title, text, categories.

In: the ids or titles of the items that are kept, and a file as its owner publishes it (JSON lines,
Python-literal lines, or movies.csv). Out: a table with at most one row an item, in which a title
may be null. HTML entities and tags are resolved, and long fields are cut; nothing here depends on
interactions, so nothing of the test split can leak into an item's text.

A file is read once, line by line: what is held in memory grows with the wanted items, and not with
the millions of others that a catalogue lists. A line that cannot be read goes to the quarantine; of
a catalogue of books only the lines that may be of a wanted one are looked into.
"""

from __future__ import annotations

import ast
import html
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from shielded_recrl.data.archive import byte_lines, extracted
from shielded_recrl.data.quarantine import Quarantine
from shielded_recrl.data.raw import BadRow, fields, header, parsed
from shielded_recrl.errors import UserError

SCHEMA = {
    "source_id": pl.String,
    "title": pl.String,
    "text": pl.String,
    "categories": pl.List(pl.String),
}
MOVIE_COLUMNS = ("movieId", "title", "genres")
# Starts with a plain word, which is what makes the search through whole catalogues fast.
ASIN = re.compile(rb"""asin["']\s*:\s*u?["'](\w+)["']""")
MOVIE = re.compile(r"^(?P<title>.+?)\s*\((?P<year>\d{4})\)$")
ARTICLE = re.compile(r"^(?P<rest>.+?), (?P<article>The|A|An|La|Le|Les|El|Il|Der|Die|Das)(?= \(|$)")
NO_GENRES = "(no genres listed)"
# Characters of a field. A prompt has room for a few sentences, and half a million books have to
# fit into memory; some descriptions are whole chapters.
TITLE_LENGTH = 300
TEXT_LENGTH = 1000
# Names of an item: tags and categories.
NAMES = 50
NAME_LENGTH = 100
# Python's parser needs some hundred times the length of a literal; published lines have 20 kB.
LITERAL_LENGTH = 1 << 20
CHUNK = 20_000


@dataclass(frozen=True)
class Metadata:
    """Readable metadata of the wanted items.

    Attributes:
        frame: table with the columns of `SCHEMA`, one row an item.
        read: rows in the file.
        parsed: rows that were looked into; all others are of items that are not wanted.
        bad: reason -> number of rows that could not be read.
    """

    frame: pl.DataFrame
    read: int
    parsed: int
    bad: dict[str, int]


def load_books(path: Path, wanted: set[str], quarantine: Quarantine) -> Metadata:
    """Amazon metadata, one item a line: Python literals (2014) or JSON (2018, 2023)."""

    def may_be(line: bytes, missing: set[str]) -> bool:
        # Most lines are of other books, and parsing is what costs.
        ids = ASIN.findall(line)
        return not ids or any(asin.decode() in missing for asin in ids)

    def key(row: dict[str, Any]) -> str:
        asin = row.get("parent_asin") or row.get("asin")
        if not isinstance(asin, str):
            raise BadRow("no id")
        return asin

    def describe(row: dict[str, Any]) -> tuple[str | None, str, list[str]]:
        description = row.get("description") or ""
        text = " ".join(_texts(description))
        categories = list(islice(_texts(row.get("categories") or row.get("category")), NAMES))
        root = clean(categories[0], NAME_LENGTH) if categories else None
        return clean(row.get("title")), clean(text, TEXT_LENGTH) or "", _unique(categories, root)

    return _collect(path, wanted, quarantine, key, describe, may_be)


def load_steam(path: Path, wanted: set[str], quarantine: Quarantine) -> Metadata:
    """Steam games, Python literals; joined on the exact title in lower case, the first row wins."""
    by_name = {title.lower(): title for title in sorted(wanted, reverse=True)}

    def key(row: dict[str, Any]) -> str:
        name = clean(row.get("app_name") or row.get("title")) or ""
        return by_name.get(name.lower(), "")

    def describe(row: dict[str, Any]) -> tuple[str | None, str, list[str]]:
        tags = _unique(_texts(row.get("tags")))
        return None, ", ".join(tags), _unique(_texts(row.get("genres"))) or tags[:3]

    found = _collect(path, set(by_name.values()), quarantine, key, describe)
    # Titles that differ only in capitals are different items with the same metadata.
    spread = pl.DataFrame(
        [(title, by_name[title.lower()]) for title in sorted(wanted)],
        schema={"title": pl.String, "source_id": pl.String},
        orient="row",
    ).join(found.frame.drop("title"), on="source_id")
    frame = spread.with_columns(pl.col("title").alias("source_id")).select(*SCHEMA)
    return Metadata(frame, found.read, found.parsed, found.bad)


def load_ml25m(path: Path, wanted: set[str], quarantine: Quarantine) -> Metadata:
    """MovieLens movies.csv, alone or inside the published zip.

    `Matrix, The (1999)` becomes `The Matrix`, and the year goes to the text; where two movies would
    then share a title, both keep the year.
    """
    rows: dict[str, tuple] = {}
    bad: Counter[str] = Counter()
    read = 0
    with _movies(path) as (file, name):
        lines = byte_lines(file)
        names = header(_content(next(lines, b"")), MOVIE_COLUMNS, name)
        places = [names.index(column) for column in MOVIE_COLUMNS]

        def movie(text: str) -> list[str]:
            row = fields(text, len(names))
            if not all(row[place] for place in places):
                raise BadRow("missing field")
            return [row[place] for place in places]

        for number, line in enumerate(lines, start=2):
            if line.isspace():
                continue
            read += 1
            try:
                row = parsed(_content(line), movie)
            except BadRow as error:
                bad[str(error)] += 1
                _put_aside(quarantine, name, number, str(error), line)
                continue
            if row[0] in wanted and row[0] not in rows:
                rows[row[0]] = _movie(*row)
        if not read:
            raise UserError(f"{name}: no rows; expected one item a row")
    frame = (
        pl.DataFrame(
            list(rows.values()),
            schema={
                "source_id": pl.String,
                "title": pl.String,
                "dated": pl.String,
                "text": pl.String,
                "categories": SCHEMA["categories"],
            },
            orient="row",
        )
        .with_columns(
            pl.when(pl.col("title").is_duplicated() & pl.col("title").is_not_null())
            .then("dated")
            .otherwise("title")
            .alias("title")
        )
        .select(*SCHEMA)
    )
    return Metadata(frame, read, read, dict(bad))


LOADERS: dict[str, Callable[[Path, set[str], Quarantine], Metadata]] = {
    "books": load_books,
    "ml25m": load_ml25m,
    "steam": load_steam,
}


def clean(text: Any, length: int = TITLE_LENGTH) -> str | None:
    """Plain text: HTML entities resolved (also doubly escaped ones), tags and extra space removed.

    What is longer than `length` characters is cut after a word.

    >>> clean("The Crucible: <b>Jerome</b> &amp;amp; Cast ")
    'The Crucible: Jerome & Cast'
    >>> clean("A very long title", 13)
    'A very long'
    """
    if not isinstance(text, str):
        return None
    # Entities and tags are longer than what they stand for.
    text = html.unescape(html.unescape(text[: 8 * length]))
    # JSON may spell half a character, which no file can hold.
    text = text.encode("utf-8", "replace").decode()
    text = " ".join(re.sub(r"</?[A-Za-z][^<>]*>", " ", text).split())
    if len(text) > length:
        text = text[: length + 1].rpartition(" ")[0] or text[:length]
    return text or None


def _collect(
    path: Path,
    wanted: set[str],
    quarantine: Quarantine,
    key: Callable[[dict[str, Any]], str],
    describe: Callable[[dict[str, Any]], tuple[str | None, str, list[str]]],
    may_be: Callable[[bytes, set[str]], bool] = lambda line, missing: True,
) -> Metadata:
    """Rows of the wanted items, the first of each.

    Args:
        path: a file with one item a line.
        wanted: keys of the items that are kept.
        quarantine: where lines go that cannot be read.
        key: what identifies the item of a row.
        describe: title, text and categories of a row.
        may_be: whether a line may be of an item that is still missing.
    """
    missing = set(wanted)
    bad: Counter[str] = Counter()
    frames, rows = [pl.DataFrame(schema=SCHEMA)], []
    read = looked_into = 0
    for number, line in enumerate(byte_lines(path), start=1):
        if line.isspace():
            continue
        read += 1
        if not may_be(line, missing):
            continue
        looked_into += 1
        try:
            row = parsed(line, _literal)
            found = key(row)
        except BadRow as error:
            bad[str(error)] += 1
            _put_aside(quarantine, str(path), number, str(error), line)
            continue
        if found in missing:
            missing.remove(found)
            rows.append((found, *describe(row)))
            if len(rows) == CHUNK:
                frames.append(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
                rows = []
    if not read:
        raise UserError(f"{path}: empty; expected one item a line")
    frames.append(pl.DataFrame(rows, schema=SCHEMA, orient="row"))
    return Metadata(pl.concat(frames), read, looked_into, dict(bad))


def _put_aside(quarantine: Quarantine, file: str, number: int, reason: str, line: bytes) -> None:
    quarantine.add(file, number, reason, line[:1000].decode("utf-8", "surrogateescape"))


def _content(line: bytes) -> bytes:
    return line.removesuffix(b"\n")


def _literal(text: str) -> dict[str, Any]:
    """A line as JSON or as a Python literal.

    Raises:
        BadRow: the line is neither.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > LITERAL_LENGTH:
            raise BadRow("unreadable") from None
        try:
            row = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise BadRow("unreadable") from None
    if not isinstance(row, dict):
        raise BadRow("unreadable")
    return row


@contextmanager
def _movies(path: Path) -> Iterator[tuple[Path, str]]:
    """movies.csv itself, and what to call it."""
    if path.suffix != ".zip":
        yield path, str(path)
        return
    # 3 MB: any temporary folder will do.
    with extracted(path, "movies.csv", Path(tempfile.gettempdir())) as file:
        yield file, f"{path}/movies.csv"


def _movie(movie: str, raw: str, genres: str) -> tuple[str, str | None, str, str, list[str]]:
    """Id, title, title with year, text and categories of a row of movies.csv."""
    title = clean(raw) or ""
    found = MOVIE.match(title)
    name, year = (found["title"], found["year"]) if found else (title, None)
    name = ARTICLE.sub(r"\g<article> \g<rest>", name)
    dated = f"{name} ({year})" if year else name
    kinds = [] if genres == NO_GENRES else _unique(genres.split("|"))
    return movie, name or None, dated, f"Released in {year}." if year else "", kinds


def _texts(value: Any) -> Iterator[str]:
    """The strings in a string or in lists, however deep, in order."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, list):
            parts.extend(reversed(part))


def _unique(names: Iterable[str], root: str | None = None) -> list[str]:
    """Clean names in first-seen order, without the root of the category tree, which all share."""
    found = dict.fromkeys(filter(None, (clean(name, NAME_LENGTH) for name in islice(names, NAMES))))
    return [name for name in found if name != root]
