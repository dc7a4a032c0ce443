"""Films: raw ids of ReDial to items, and their categories from MovieLens.

In: movies_with_mentions.csv, the titles that dialogues bring along, and movies.csv of MovieLens.
Out: items numbered from 1 in the order of the first file. ReDial has ids of one film several times;
those whose title and year are the same, whatever their spelling, are one item.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import polars as pl

from shielded_recrl.data.archive import byte_lines
from shielded_recrl.data.metadata import ARTICLE, MOVIE_COLUMNS, NO_GENRES
from shielded_recrl.data.raw import BadRow, fields, header, parsed
from shielded_recrl.dialogue.corpus.dialogues import SCHEMAS
from shielded_recrl.dialogue.corpus.quarantine import Quarantine
from shielded_recrl.dialogue.corpus.redial import MAX_TITLE, MENTION, clean

NAME_COLUMNS = ("movieId", "movieName")
YEAR = re.compile(r"^(?P<title>.+?)\s*\((?P<year>[0-9]{4})\)$")
# MovieLens puts other names of a film behind its name: "Seven (a.k.a. Se7en)".
OTHER_NAME = re.compile(r"\s*\((?:a\.k\.a\.\s*)?([^()]+)\)")
Key = tuple[str, int | None]


class Film(NamedTuple):
    """A title as it is shown, and a year where it is known."""

    title: str
    year: int | None


def film(name: str) -> Film:
    """Title and year of a name as ReDial has it.

    >>> film("Why Him%3F (2016)"), film("American Pie ")
    (Film(title='Why Him?', year=2016), Film(title='American Pie', year=None))
    """
    name = clean(unquote(name))[:MAX_TITLE]
    found = YEAR.match(name)
    return Film(found["title"], int(found["year"])) if found else Film(name, None)


def key(found: Film) -> Key:
    """What equal films have in common, however they are spelled.

    >>> key(Film("The Fast & the Furious", 2001)) == key(Film("Fast and the Furious, The", 2001))
    True
    >>> key(Film("Am\\u00e9lie", 2001)), key(Film("$", 1971))
    (('amelie', 2001), ('$', 1971))
    """
    title = ARTICLE.sub(r"\g<article> \g<rest>", found.title)
    letters = unicodedata.normalize("NFKD", title).casefold().replace("&", " and ")
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    words = re.sub(r"[^\w]+", " ", letters.replace("'", "").replace("\u2019", "")).split()
    return " ".join(words) or title.casefold(), found.year


class Genres:
    """Categories of films, found by title and year."""

    def __init__(self) -> None:
        self._years: dict[str, dict[int | None, tuple[str, ...]]] = {}

    def add(self, found: Film, categories: tuple[str, ...]) -> None:
        """Take in a film; of equal ones the first counts."""
        title, year = key(found)
        self._years.setdefault(title, {}).setdefault(year, categories)

    def of(self, found: Film) -> tuple[str, ...]:
        """Categories of a film, none where it is unknown.

        Sources differ by a year, of festivals and of cinemas; and a film without a year is the only
        one of its title.
        """
        title, year = key(found)
        years = self._years.get(title, {})
        if year is None:
            return next(iter(years.values())) if len(years) == 1 else ()
        return next((years[near] for near in (year, year - 1, year + 1) if near in years), ())


class Catalogue:
    """Items of raw ids, numbered as they come.

    Attributes:
        item: raw id -> item.
        films: the films, the first being item 1.
    """

    def __init__(self) -> None:
        self.item: dict[str, int] = {}
        self.films: list[Film] = []
        self._numbers: dict[Key, int] = {}

    def add(self, names: Mapping[str, str]) -> None:
        """Give each raw id that has none yet the item of its name."""
        for movie, name in names.items():
            if movie not in self.item:
                found = film(name)
                number = self._numbers.setdefault(key(found), len(self.films) + 1)
                if number > len(self.films):
                    self.films.append(found)
                self.item[movie] = number

    def table(self, genres: Genres, mentions: Mapping[int, int]) -> pl.DataFrame:
        """The table of items.

        Args:
            genres: their categories.
            mentions: item -> its slots in train.
        """
        movies: list[list[str]] = [[] for _ in self.films]
        for movie, item in self.item.items():
            movies[item - 1].append(movie)
        numbers = range(1, len(self.films) + 1)
        return pl.DataFrame(
            {
                "item": numbers,
                "movies": movies,
                "title": [found.title for found in self.films],
                "year": [found.year for found in self.films],
                "categories": [list(genres.of(found)) for found in self.films],
                "mentions": [mentions.get(number, 0) for number in numbers],
            },
            schema=SCHEMAS["items"],
        )


def read_names(path: Path, file: str, quarantine: Quarantine) -> tuple[dict[str, str], int]:
    """Raw id -> name of movies_with_mentions.csv, of equal ids the first; and the number of rows.

    Args:
        path: the file.
        file: what to call it.
        quarantine: takes the rows that cannot be read.

    Raises:
        UserError: its header is another.
    """

    def name(row: list[str]) -> tuple[str, str]:
        movie, title = row
        if not MENTION.fullmatch(f"@{movie}") or not clean(title):
            raise BadRow("no film id or no name")
        return movie, title

    found, rows = _rows(path, file, NAME_COLUMNS, name, quarantine)
    names: dict[str, str] = {}
    for movie, title in found:
        names.setdefault(movie, title)
    return names, rows


def read_genres(path: Path, file: str, quarantine: Quarantine) -> tuple[Genres, int]:
    """Categories of movies.csv, under each of a film's names; and the number of its rows.

    Raises:
        UserError: its header is another.
    """
    found, rows = _rows(path, file, MOVIE_COLUMNS[1:], tuple, quarantine)
    genres = Genres()
    for name, kinds in found:
        title, year = film(name)
        categories = () if kinds == NO_GENRES else tuple(dict.fromkeys(kinds.split("|")))
        for spelling in (title, OTHER_NAME.sub("", title), *OTHER_NAME.findall(title)):
            genres.add(Film(spelling, year), categories)
    return genres, rows


def _rows(
    path: Path,
    file: str,
    columns: tuple[str, ...],
    parse: Callable[[list[str]], tuple],
    quarantine: Quarantine,
) -> tuple[list[tuple], int]:
    """What `parse` makes of the named columns of each row of a csv; and the number of its rows."""
    lines = byte_lines(path)
    names = header(next(lines, b"").removesuffix(b"\n"), columns, file)
    places = [names.index(column) for column in columns]

    def row(text: str) -> tuple:
        found = fields(text, len(names))
        return parse([found[place] for place in places])

    found, read = [], 0
    for number, line in enumerate(lines, start=2):
        if line.isspace():
            continue
        read += 1
        try:
            found.append(parsed(line.removesuffix(b"\n"), row))
        except BadRow as error:
            quarantine.add(file, number, str(error), line[:1000].decode("utf-8", "replace"))
    return found, read
