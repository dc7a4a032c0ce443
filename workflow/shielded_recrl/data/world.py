"""The embedded raw files: a synthetic world written in exactly the raw formats.

In: a seed and sizes. Out, in the formats of the real sources:

    books   reviews_Books_5.json.gz (JSON lines of 2014), meta_Books.json.gz (Python literals)
    ml25m   ratings.csv, movies.csv, tags.csv, links.csv
    steam   steam-200k.csv (no header), steam_games.json.gz (Python literals of Python 2)

Equal seeds and sizes give equal bytes: gzip headers carry no time and no name. What is latent in
the world is described in `shielded_recrl.data.latent`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from shielded_recrl.data.latent import Item, World, draw_world
from shielded_recrl.data.settings import DATASETS, WorldSettings, require_dataset
from shielded_recrl.data.words import BLAME, PRAISE
from shielded_recrl.files import atomic

EPOCH = int(datetime(2009, 1, 1, tzinfo=UTC).timestamp())
DAY = 86_400
ALPHABET = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
DEFAULTS = WorldSettings()


def main(
    *,
    dataset: str,
    out: Path,
    seed: int = 42,
    settings: Annotated[WorldSettings, tyro.conf.arg(name="")] = DEFAULTS,
) -> None:
    """Write the embedded synthetic raw files of one dataset.

    Args:
        dataset: books, ml25m or steam.
        out: folder for the raw files; it is replaced.
        seed: equal seeds give equal bytes.
        settings: sizes of the world.
    """
    require_dataset(dataset)
    rng = np.random.default_rng([seed, DATASETS.index(dataset)])
    world = draw_world(dataset, settings, rng)
    with atomic(out) as folder:
        folder.mkdir()
        for name, data in RENDER[dataset](world, rng).items():
            (folder / name).write_bytes(data)
    print(f"{out}: {len(world.events)} events, {settings.users} users, {len(world.items)} items")


def render_books(world: World, rng: np.random.Generator) -> dict[str, bytes]:
    """Reviews grouped by book, as in the real file, and the books' metadata."""
    users = _codes(rng, "A", 13, 1 + max(event.user for event in world.events))
    books = _codes(rng, "000", 7, len(world.items), digits=True)
    reviews = []
    for event in sorted(world.events, key=lambda event: books[event.item]):
        overall = _stars(event.rating, 1.0)
        seconds = EPOCH + int(event.day) * DAY
        date = datetime.fromtimestamp(seconds, UTC)
        reviews.append(
            {
                "reviewerID": users[event.user],
                "asin": books[event.item],
                "reviewerName": f"Reader {event.user + 1}",
                "helpful": [0, 0],
                "reviewText": _opinion(world.items[event.item], overall, rng),
                "overall": overall,
                "summary": "A good read" if overall >= 4 else "Not for me",
                "unixReviewTime": seconds,
                "reviewTime": f"{date.month:02d} {date.day}, {date.year}",
            }
        )
    metadata = []
    for index in sorted(range(len(world.items)), key=books.__getitem__):
        item = world.items[index]
        row: dict[str, Any] = {
            "asin": books[index],
            "salesRank": {"Books": int(rng.integers(1_000, 9_000_000))},
            "imUrl": f"http://ecx.images-amazon.com/images/I/{books[index]}.jpg",
            "categories": [["Books", category] for category in item.categories],
            "title": _escape(item.title),
        }
        if rng.random() < 0.9:
            row["description"] = _escape(_description(item))
        metadata.append(row)
    return {
        "reviews_Books_5.json.gz": _gzip(json.dumps(review) for review in reviews),
        "meta_Books.json.gz": _gzip(map(repr, metadata)),
    }


def render_ml25m(world: World, rng: np.random.Generator) -> dict[str, bytes]:
    """Ratings sorted by user and movie, as in the real file, movies, tags and links."""
    movies = np.sort(rng.choice(np.arange(1, 10 * len(world.items)), len(world.items), False))
    movies = rng.permutation(movies).tolist()
    order = sorted(range(len(world.items)), key=movies.__getitem__)
    ratings, tags = [], []
    for event in sorted(world.events, key=lambda event: (event.user, movies[event.item])):
        seconds = EPOCH + int(event.day * DAY)
        key = (event.user + 1, movies[event.item])
        ratings.append((*key, _stars(event.rating, 0.5), seconds))
        if rng.random() < 0.05:
            tags.append(
                (*key, f"great {rng.choice(world.items[event.item].aspects)}", seconds + 60)
            )
    return {
        "ratings.csv": _csv(["userId", "movieId", "rating", "timestamp"], ratings),
        "movies.csv": _csv(
            ["movieId", "title", "genres"],
            (_movie(movies[index], world.items[index]) for index in order),
        ),
        "tags.csv": _csv(["userId", "movieId", "tag", "timestamp"], tags),
        "links.csv": _csv(
            ["movieId", "imdbId", "tmdbId"],
            ((movies[index], f"{100_000 + index:07d}", 500 + index) for index in order),
        ),
    }


def render_steam(world: World, rng: np.random.Generator) -> dict[str, bytes]:
    """A purchase row for each game of a user, a play row with hours for most, and the games."""
    users = 10_000_000 + rng.choice(299_000_000, 1 + world.events[-1].user, replace=False)
    rows = io.StringIO()
    for event in world.events:
        head = f'{users[event.user]},"{world.items[event.item].title}"'
        rows.write(f"{head},purchase,1.0,0\n")
        hours = np.exp(1.0 + 0.7 * event.affinity + rng.normal())
        if rng.random() < 0.7:
            rows.write(f"{head},play,{max(0.1, round(float(hours), 1))},0\n")
    games = []
    for index, item in enumerate(world.items):
        # The two real files disagree on capitals now and then.
        title = item.title.upper() if rng.random() < 0.1 else item.title
        fields = {
            "publisher": "Embedded Games",
            "genres": list(item.categories),
            "app_name": title,
            "title": title,
            "release_date": f"{item.year}-01-01",
            "tags": [*item.categories, *(aspect.capitalize() for aspect in item.aspects)],
            "specs": ["Single-player"],
            "price": 9.99,
            "early_access": False,
            "id": str(100_000 + 10 * index),
        }
        games.append(_python2(fields))
    return {"steam-200k.csv": rows.getvalue().encode(), "steam_games.json.gz": _gzip(games)}


RENDER: dict[str, Callable[[World, np.random.Generator], dict[str, bytes]]] = {
    "books": render_books,
    "ml25m": render_ml25m,
    "steam": render_steam,
}


def _movie(movie: int, item: Item) -> tuple[int, str, str]:
    title = item.title
    if title.startswith("The "):
        title = f"{title.removeprefix('The ')}, The"
    return movie, f"{title} ({item.year})", "|".join(sorted(item.categories))


def _stars(rating: float, step: float) -> float:
    """Round to the nearest step within the scale (0.5 or 1 to 5)."""
    return float(np.clip(np.floor(rating / step + 0.5) * step, step, 5.0))


def _opinion(item: Item, overall: float, rng: np.random.Generator) -> str:
    words = PRAISE if overall >= 4 else BLAME
    sentences = [f"The {aspect} is {rng.choice(words)}." for aspect in item.aspects]
    end = f"Fans of {item.categories[0].lower()} will {'love' if overall >= 4 else 'skip'} it."
    return " ".join([*sentences, end])


def _description(item: Item) -> str:
    *others, last = (category.lower() for category in item.categories)
    kinds = f"{', '.join(others)} and {last}"
    place = f"Volume {item.volume} of a series. " if item.volume else ""
    return f"{place}A story of {kinds}, praised for its {item.aspects[0]} and {item.aspects[1]}."


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("'", "&#39;")


def _python2(value: Any) -> str:
    """The literal Python 2 would print: unicode strings carry a u."""
    if isinstance(value, str):
        return f"u{value!r}"
    if isinstance(value, list):
        return f"[{', '.join(map(_python2, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"u{k!r}: {_python2(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _codes(
    rng: np.random.Generator, prefix: str, length: int, count: int, digits: bool = False
) -> list[str]:
    """Distinct random codes, in no telling order."""
    letters = ALPHABET[:10] if digits else ALPHABET
    codes: dict[str, None] = {}
    while len(codes) < count:
        codes[prefix + "".join(rng.choice(letters, length))] = None
    return list(codes)


def _csv(header: list[str], rows: Iterable[tuple]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue().encode()


def _gzip(lines: Iterable[str]) -> bytes:
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
