"""Raw metadata files to one table of items: source_id, title, text, categories.

In: the ids or titles of the items that are kept, and a file as its owner publishes it (JSON lines,
Python-literal lines, or movies.csv). Out: a table with at most one row an item, in which a title
may be null. HTML entities and tags are resolved; nothing here depends on interactions, so nothing
of the test split can leak into an item's text.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from shielded_recrl.data.raw import lines, read_csv
from shielded_recrl.errors import UserError

SCHEMA = {
    "source_id": pl.String,
    "title": pl.String,
    "text": pl.String,
    "categories": pl.List(pl.String),
}
ASIN = re.compile(r"""["'](?:parent_)?asin["']\s*:\s*u?["'](\w+)["']""")
MOVIE = re.compile(r"^(?P<title>.+?)\s*\((?P<year>\d{4})\)$")
ARTICLE = re.compile(r"^(?P<rest>.+?), (?P<article>The|A|An|La|Le|Les|El|Il|Der|Die|Das)(?= \(|$)")
NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class Metadata:
    """Readable metadata of the wanted items.

    Attributes:
        frame: table with the columns of `SCHEMA`, one row an item.
        read: rows in the file.
        bad: reason -> number of rows that could not be read.
    """

    frame: pl.DataFrame
    read: int
    bad: dict[str, int]


def load_books(path: Path, wanted: set[str]) -> Metadata:
    """Amazon metadata, one item a line: Python literals (2014) or JSON (2018, 2023)."""

    def parse(line: str) -> tuple[str, dict[str, Any] | None]:
        found = ASIN.search(line)
        # Most lines of the whole catalogue are not wanted, and parsing is what costs.
        if found and found[1] not in wanted:
            return found[1], None
        row = _literal(line)
        return str(row["parent_asin"] if "parent_asin" in row else row["asin"]), row

    def describe(row: dict[str, Any]) -> tuple[str | None, str, list[str]]:
        description = row.get("description") or ""
        text = " ".join(description) if isinstance(description, list) else str(description)
        categories = list(_flatten(row.get("categories") or row.get("category") or []))
        root = categories[0] if categories else None
        return clean(row.get("title")), clean(text) or "", _unique(categories, root)

    return _collect(path, wanted, parse, describe)


def load_steam(path: Path, wanted: set[str]) -> Metadata:
    """Steam games, Python literals; joined on the exact title in lower case, the first row wins."""
    by_name = {title.lower(): title for title in sorted(wanted, reverse=True)}

    def parse(line: str) -> tuple[str, dict[str, Any] | None]:
        row = _literal(line)
        name = clean(row.get("app_name") or row.get("title") or "") or ""
        return by_name.get(name.lower(), ""), row

    def describe(row: dict[str, Any]) -> tuple[str | None, str, list[str]]:
        tags = _unique(row.get("tags") or [])
        return None, ", ".join(tags), _unique(row.get("genres") or tags[:3])

    found = _collect(path, wanted, parse, describe)
    # Titles that differ only in capitals are different items with the same metadata.
    spread = pl.DataFrame(
        [(title, by_name[title.lower()]) for title in sorted(wanted)],
        schema={"title": pl.String, "source_id": pl.String},
        orient="row",
    ).join(found.frame.drop("title"), on="source_id")
    frame = spread.with_columns(pl.col("title").alias("source_id")).select(*SCHEMA)
    return Metadata(frame, found.read, found.bad)


def load_ml25m(path: Path, wanted: set[str]) -> Metadata:
    """MovieLens movies.csv, alone or inside the published zip.

    `Matrix, The (1999)` becomes `The Matrix`, and the year goes to the text; where two movies would
    then share a title, both keep the year.
    """
    table = read_csv(path, ("movieId", "title", "genres"), "movies.csv")
    complete = table.drop_nulls()
    rows = []
    for movie, raw, genres in complete.unique("movieId", keep="first", maintain_order=True).rows():
        title = clean(raw) or ""
        found = MOVIE.match(title)
        name, year = (found["title"], found["year"]) if found else (title, None)
        name = ARTICLE.sub(r"\g<article> \g<rest>", name)
        dated = f"{name} ({year})" if year else name
        kinds = [] if genres == NO_GENRES else _unique(genres.split("|"))
        rows.append((movie, name or None, dated, f"Released in {year}." if year else "", kinds))
    frame = (
        pl.DataFrame(
            rows,
            schema={
                "source_id": pl.String,
                "title": pl.String,
                "dated": pl.String,
                "text": pl.String,
                "categories": SCHEMA["categories"],
            },
            orient="row",
        )
        .filter(pl.col("source_id").is_in(list(wanted)))
        .with_columns(
            pl.when(pl.col("title").is_duplicated() & pl.col("title").is_not_null())
            .then("dated")
            .otherwise("title")
            .alias("title")
        )
        .select(*SCHEMA)
    )
    missing = len(table) - len(complete)
    return Metadata(frame, len(table), {"missing field": missing} if missing else {})


LOADERS: dict[str, Callable[[Path, set[str]], Metadata]] = {
    "books": load_books,
    "ml25m": load_ml25m,
    "steam": load_steam,
}


def clean(text: Any) -> str | None:
    """Plain text: HTML entities resolved (also doubly escaped ones), tags and extra space removed.

    >>> clean("The Crucible: <b>Jerome</b> &amp;amp; Cast ")
    'The Crucible: Jerome & Cast'
    """
    if not isinstance(text, str):
        return None
    text = html.unescape(html.unescape(text))
    return " ".join(re.sub(r"</?[A-Za-z][^<>]*>", " ", text).split()) or None


def _collect(
    path: Path,
    wanted: set[str],
    parse: Callable[[str], tuple[str, dict[str, Any] | None]],
    describe: Callable[[dict[str, Any]], tuple[str | None, str, list[str]]],
) -> Metadata:
    rows: dict[str, tuple] = {}
    read = unreadable = 0
    for line in lines(path):
        read += 1
        try:
            key, row = parse(line)
            if row is not None and key in wanted and key not in rows:
                rows[key] = (key, *describe(row))
        except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
            unreadable += 1
    if not read:
        raise UserError(f"{path}: empty; expected one item a line")
    frame = pl.DataFrame(list(rows.values()), schema=SCHEMA, orient="row")
    return Metadata(frame, read, {"unreadable": unreadable} if unreadable else {})


def _literal(line: str) -> dict[str, Any]:
    """A line as JSON or as a Python literal.

    Raises:
        ValueError, SyntaxError: the line is neither.
    """
    try:
        row = json.loads(line)
    except ValueError:
        row = ast.literal_eval(line.strip())
    if not isinstance(row, dict):
        raise ValueError("not a mapping")
    return row


def _flatten(value: Any) -> Iterable[str]:
    if isinstance(value, list):
        for part in value:
            yield from _flatten(part)
    elif text := clean(value):
        yield text


def _unique(names: Iterable[Any], root: str | None = None) -> list[str]:
    """Clean names in first-seen order, without the root of the category tree, which all share."""
    found = dict.fromkeys(filter(None, map(clean, names)))
    return [name for name in found if name != root]
