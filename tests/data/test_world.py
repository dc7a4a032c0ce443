"""The embedded world: true formats, equal bytes for equal seeds, and signal worth learning."""

import ast
import csv
import gzip
import io
import json
from collections import Counter

import numpy as np
import polars as pl
import pytest

from shielded_recrl.data.latent import _name, draw_affinity, draw_items, draw_world
from shielded_recrl.data.settings import DATASETS, WorldSettings
from shielded_recrl.data.words import CATEGORIES, THEMES
from shielded_recrl.errors import UserError

SMALL = ("--users", 40, "--items", 40, "--interactions", 20)
FILES = {
    "books": ("reviews_Books_5.json.gz", "meta_Books.json.gz"),
    "ml25m": ("ratings.csv", "movies.csv"),
    "steam": ("steam-200k.csv", "steam_games.json.gz"),
}


def unzip(path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


@pytest.mark.parametrize("dataset", DATASETS)
def test_equal_seeds_give_equal_bytes(dataset, tmp_path, command):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        words = ("--dataset", dataset, "--out", tmp_path / name, "--seed", seed)
        assert command("world", *words, *SMALL).code == 0
    one, two, three = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two", "three")
    )
    assert one == two
    assert set(FILES[dataset]) <= set(one)
    assert all(one[name] != three[name] for name in FILES[dataset])


@pytest.mark.parametrize("dataset", DATASETS)
def test_world_then_prepare(dataset, tmp_path, command):
    raw, out = tmp_path / "raw", tmp_path / "out"
    assert command("world", "--dataset", dataset, "--out", raw).code == 0
    interactions, metadata = (raw / name for name in FILES[dataset])
    words = ("--interactions", interactions, "--metadata", metadata, "--out", out)
    positive = 0 if dataset == "steam" else 4
    flags = ("--synthetic", True, "--seed", 42, "--min-weight", positive)
    ended = command("prepare", "--dataset", dataset, *words, *flags)
    assert ended.code == 0
    about = json.loads((out / "stats.json").read_text())
    assert about["synthetic"]
    assert about["metadata"]["untitled"] == len(about["metadata"]["bad"]) == 0
    items = pl.read_parquet(out / "items.parquet")
    assert items["title"].is_unique().all()
    assert items["title"].str.split(" ").list.len().is_between(2, 5).all()
    assert set(items["categories"].explode()) == set(CATEGORIES[dataset])
    assert items["categories"].list.len().is_between(2, 3).all()
    counts = pl.read_parquet(out / "interactions.parquet")["user"].value_counts()["count"]
    assert (counts >= 10).mean() > 0.9
    for part in ("valid", "test"):
        users = pl.read_parquet(out / f"{part}.parquet")["user"]
        assert users.n_unique() == about["users"]


def test_movielens_format(tmp_path, command):
    assert command("world", "--dataset", "ml25m", "--out", tmp_path / "raw", *SMALL).code == 0
    headers = {
        "ratings.csv": "userId,movieId,rating,timestamp",
        "movies.csv": "movieId,title,genres",
        "tags.csv": "userId,movieId,tag,timestamp",
        "links.csv": "movieId,imdbId,tmdbId",
    }
    for name, header in headers.items():
        assert (tmp_path / "raw" / name).read_text().splitlines()[0] == header
    rows = list(csv.DictReader(io.StringIO((tmp_path / "raw" / "ratings.csv").read_text())))
    assert {float(row["rating"]) * 2 for row in rows} <= set(range(1, 11))
    keys = [(int(row["userId"]), int(row["movieId"])) for row in rows]
    assert keys == sorted(keys)


def test_books_format(tmp_path, command):
    assert command("world", "--dataset", "books", "--out", tmp_path / "raw", *SMALL).code == 0
    reviews = [json.loads(line) for line in unzip(tmp_path / "raw" / "reviews_Books_5.json.gz")]
    assert set(reviews[0]) == {
        *("reviewerID", "asin", "reviewerName", "helpful", "reviewText"),
        *("overall", "summary", "unixReviewTime", "reviewTime"),
    }
    assert all(review["unixReviewTime"] % 86_400 == 0 for review in reviews)
    lines = unzip(tmp_path / "raw" / "meta_Books.json.gz")
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[0])
    rows = [ast.literal_eval(line) for line in lines]
    assert all(row["categories"][0][0] == "Books" for row in rows)


def test_html_entities_come_and_go(tmp_path, command):
    assert command("world", "--dataset", "books", "--out", tmp_path / "raw").code == 0
    titles = [
        ast.literal_eval(line)["title"] for line in unzip(tmp_path / "raw/meta_Books.json.gz")
    ]
    assert 0 < sum("&amp;" in title for title in titles) < len(titles) / 2


def test_steam_format(tmp_path, command):
    assert command("world", "--dataset", "steam", "--out", tmp_path / "raw", *SMALL).code == 0
    lines = (tmp_path / "raw" / "steam-200k.csv").read_text().splitlines()
    rows = list(csv.reader(lines))
    assert {(len(row), row[2], row[4]) for row in rows} == {(5, "purchase", "0"), (5, "play", "0")}
    assert {row[3] for row in rows if row[2] == "purchase"} == {"1.0"}
    games = unzip(tmp_path / "raw" / "steam_games.json.gz")
    assert all(line.startswith("{u'publisher': u'") for line in games)


@pytest.fixture(scope="module")
def world():
    return draw_world("ml25m", WorldSettings(), np.random.default_rng(0))


def test_title_words_tell_taste(world):
    # A history's words predict what a user meets next better than what others meet.
    by_user: dict[int, list[int]] = {}
    for event in world.events:
        by_user.setdefault(event.user, []).append(event.item)
    words = [set(item.title.split()) - {"The", "&", "2", "3"} for item in world.items]
    own, other = [], []
    for user, items in by_user.items():
        known = Counter(word for item in items[:-3] for word in words[item])
        strangers = by_user[(user + 1) % len(by_user)][-3:]
        for found, future in ((own, items[-3:]), (other, strangers)):
            found += [sum(known[word] for word in words[item]) for item in future]
    assert np.mean(own) > 1.25 * np.mean(other)


def test_volumes_are_read_in_order(world):
    places = {(event.user, event.item): n for n, event in enumerate(world.events)}
    pairs = [
        places[user, item] < places[user, item + 1]
        for user, item in places
        if world.items[item].volume in (1, 2) and (user, item + 1) in places
    ]
    assert len(pairs) > 200
    assert np.mean(pairs) > 0.8


def test_ratings_follow_affinity(world):
    affinity, rating = np.array([(event.affinity, event.rating) for event in world.events]).T
    assert np.corrcoef(affinity, rating)[0, 1] > 0.4


def test_affinity_is_standardised_per_user():
    rng = np.random.default_rng(0)
    affinity = draw_affinity("books", draw_items("books", 60, rng), 30, rng)
    assert affinity.shape == (30, 60)
    np.testing.assert_allclose(affinity.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(affinity.std(axis=1), 1)


def test_no_name_left_is_an_error():
    class Everything(set):
        def __contains__(self, name):
            return True

    with pytest.raises(UserError, match=r"lower world\.items"):
        _name(["fantasy", "scifi"], Everything(), np.random.default_rng(0))


def test_every_category_has_words():
    assert {theme for ring in CATEGORIES.values() for theme in ring.values()} == set(THEMES)
    assert all(len(set(words.split())) == 8 for theme in THEMES.values() for words in theme)


def test_unknown_dataset(tmp_path, command):
    ended = command("world", "--dataset", "anime", "--out", tmp_path / "raw")
    assert "books, ml25m, steam" in ended.message
    assert not (tmp_path / "raw").exists()
