"""Review texts: those of kept interactions, whatever is around them and however they are read."""

import gzip
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.audit.inputs import read_users
from shielded_recrl.audit.privacy import leaks, user_names
from shielded_recrl.data import reviews
from shielded_recrl.data.metadata import clean
from shielded_recrl.data.raw import REVIEW_SCHEMA, review_texts
from shielded_recrl.data.reviews import SCHEMA, write_reviews
from shielded_recrl.errors import UserError

DENSE = ("--min-interactions", 1)


def review(user, item, text, time=1, stars=5.0, **more):
    row = {"reviewerID": user, "asin": item, "overall": stars, "unixReviewTime": time}
    return json.dumps(row | {"reviewText": text} | more)


def filler():
    """Enough reviews without text for every split to have rows."""
    return [
        json.dumps(
            {"reviewerID": f"F{u}", "asin": f"G{i}", "overall": 5.0, "unixReviewTime": 9 + i}
        )
        for u in range(4)
        for i in range(4)
    ]


def prepared(command, path, out, *words):
    """The texts by source ids of user and item, and the split of each."""
    ended = command("prepare", "--dataset", "books", "--interactions", path, "--out", out, *words)
    assert ended.code == 0, ended.message
    found = pl.read_parquet(out / "reviews.parquet")
    assert dict(found.schema) == SCHEMA
    assert found.select("user", "item").rows() == sorted(set(found.select("user", "item").rows()))
    assert json.loads((out / "stats.json").read_text())["reviews"] == len(found)
    users = pl.read_parquet(out / "users.parquet")["source_id"].to_list()
    items = pl.read_parquet(out / "items.parquet")["source_id"].to_list()
    rows = {(users[u - 1], items[i - 1]): (split, text) for u, i, split, text in found.rows()}
    for part in ("train", "valid", "test"):
        pairs = pl.read_parquet(out / f"{part}.parquet").select("user", "item").rows()
        named = {(users[u - 1], items[i - 1]) for u, i in pairs}
        assert {pair for pair, (split, _) in rows.items() if split == part} <= named
    return {pair: text for pair, (_, text) in rows.items()}


def expected(lines, out):
    """What a plain loop over the file finds."""
    whole = pl.read_parquet(out / "interactions.parquet")
    users = pl.read_parquet(out / "users.parquet")["source_id"].to_list()
    items = pl.read_parquet(out / "items.parquet")["source_id"].to_list()
    kept = {
        (users[u - 1], items[i - 1]): time
        for u, i, time in whole.select("user", "item", "timestamp").rows()
    }
    texts = {}
    for row in map(json.loads, lines):
        pair = (row["reviewerID"], row["asin"])
        if kept.get(pair) == row["unixReviewTime"]:
            text = clean(row.get("reviewText"), 2000)
            if text:
                texts[pair] = text
    return texts


@pytest.mark.parametrize("name", ["Musical_Instruments_5", "All_Beauty_5"])
def test_whole_cores(shared_data, tmp_path, command, name):
    path = shared_data / "amazon_schema" / f"{name}.json.gz"
    found = prepared(command, path, tmp_path)
    assert found == expected(gzip.decompress(path.read_bytes()).splitlines(), tmp_path)
    assert max(map(len, found.values())) <= 2000
    # None is cut without need, and entities are resolved.
    assert len(found) > 5 * 137
    assert not any("&#34;" in text or "&quot;" in text for text in found.values())


def test_first_real_books(shared_data, tmp_path, command):
    path = shared_data / "books" / "reviews_Books_5_first1000.json.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    # Four readers of everything give every split its rows.
    extra = [
        json.dumps({"reviewerID": f"R{r}", "asin": asin, "overall": 5, "unixReviewTime": r + n + 1})
        for r in range(4)
        for n, asin in enumerate(sorted({json.loads(line)["asin"] for line in lines}))
    ]
    joined = tmp_path / "reviews.json.gz"
    joined.write_bytes(gzip.compress(b"\n".join([*lines, *(row.encode() for row in extra)])))
    found = prepared(command, joined, tmp_path / "out", *DENSE)
    assert found == expected(lines, tmp_path / "out")
    assert len(found) == 1000


def test_embedded_books(tmp_path, command):
    raw = tmp_path / "raw"
    words = ("--users", 40, "--items", 40, "--interactions", 12)
    assert command("world", "--dataset", "books", "--out", raw, *words).code == 0
    path = raw / "reviews_Books_5.json.gz"
    found = prepared(command, path, tmp_path / "out", "--min-weight", 4)
    assert found == expected(gzip.decompress(path.read_bytes()).splitlines(), tmp_path / "out")
    # Here everybody writes, so every kept interaction has a text.
    assert len(found) == len(pl.read_parquet(tmp_path / "out" / "interactions.parquet")) > 100
    rows = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    called = {row["reviewerID"]: row["reviewerName"] for row in rows}
    assert names(tmp_path / "out").items() <= called.items()


def test_the_audit_finds_a_name_of_the_embedded_books_in_a_text(tmp_path, command):
    raw, out = tmp_path / "raw", tmp_path / "out"
    words = ("--users", 40, "--items", 40, "--interactions", 12)
    assert command("world", "--dataset", "books", "--out", raw, *words).code == 0
    path = raw / "reviews_Books_5.json.gz"
    prepared(command, path, out, "--min-weight", 4)
    users, items = read_users(out / "users.parquet"), pl.read_parquet(out / "items.parquet")
    known = user_names(users["name"].drop_nulls().to_list(), items["title"].to_list())
    name = users["name"][0]
    texts = [f"As {name} said, it is good.", "As a reader said, it is good."]
    assert leaks(texts, known).tolist() == [True, False]


@pytest.mark.parametrize("dataset", ["ml25m", "steam"])
def test_no_reviews_in_other_embedded_sources(tmp_path, command, dataset):
    raw = tmp_path / "raw"
    words = ("--users", 40, "--items", 40, "--interactions", 12)
    assert command("world", "--dataset", dataset, "--out", raw, *words).code == 0
    path = raw / {"ml25m": "ratings.csv", "steam": "steam-200k.csv"}[dataset]
    words = ("--interactions", path, "--out", tmp_path / "out")
    assert command("prepare", "--dataset", dataset, *words).code == 0
    found = pl.read_parquet(tmp_path / "out" / "reviews.parquet")
    assert (len(found), dict(found.schema)) == (0, SCHEMA)
    assert set(names(tmp_path / "out").values()) == {None}


def test_no_reviews_in_ratings_of_2023(tmp_path, command):
    path = tmp_path / "Books.csv"
    rows = [f"U{u},B{i},5.0,{1_500_000_000_000 + i}" for u in range(5) for i in range(5)]
    path.write_text("\n".join(["user_id,parent_asin,rating,timestamp", *rows]))
    assert prepared(command, path, tmp_path / "out") == {}
    assert set(names(tmp_path / "out").values()) == {None}


ODD = [
    (json.dumps("plain"), "plain"),
    (json.dumps("Tom &amp;amp; Jerry<br />said  \n &#34;hi&#34; "), 'Tom & Jerry said "hi"'),
    (json.dumps("[in brackets] {and} more"), "[in brackets] {and} more"),
    (json.dumps('so "reviewText": 5 it says'), 'so "reviewText": 5 it says'),
    (json.dumps("word " * 1000), ("word " * 400).strip()),
    (json.dumps("\U0001f600 日本"), "\U0001f600 日本"),
    (r'"half \ud83d a character"', "half ? a character"),
    (r'"halves \ud83d\uee00 of two"', "halves ?\uee00 of two"),
    (r'"a NUL \u0000 inside"', "a NUL \0 inside"),
    ("null", None),
    ('""', None),
    ('" \\n "', None),
    ("5", None),
    ("true", None),
    ('["a", "list"]', None),
    ('{"an": "object"}', None),
]


@pytest.mark.parametrize(("text", "wanted"), ODD)
@pytest.mark.parametrize("beside", ["", "\n\n", "no JSON\n"])
def test_a_text_is_read_alike_whatever_its_neighbours(tmp_path, command, text, wanted, beside):
    """A blank or bad line has all lines of its block looked at one by one."""
    path = tmp_path / "reviews.json"
    row = '{"reviewerID": "U", "asin": "I", "overall": 5, "unixReviewTime": 3, "reviewText": '
    path.write_text("\n".join([*filler(), row + text + "}"]) + "\n" + beside)
    found = prepared(command, path, tmp_path / "out", *DENSE, "--max-bad-share", 0.5)
    assert found == ({} if wanted is None else {("U", "I"): wanted})


def test_the_review_is_that_of_the_interaction(tmp_path, command):
    path = tmp_path / "reviews.json"
    lines = [
        review("A", "x", "old", time=5),
        review("A", "x", "newer", time=7),
        review("A", "x", "late in the file", time=6),
        review("B", "x", "first of a day", time=5),
        review("B", "x", "last of a day", time=5),
        review("B", "x", "no rating", time=5, stars=7.0),
        review("C", "x", "disliked", time=5, stars=1.0),
        review("D", "x", "has a text", time=5),
        review("D", "x", None, time=5),
    ]
    path.write_text("\n".join([*filler(), *lines]))
    words = ("--min-weight", 3, "--max-bad-share", 0.1)
    found = prepared(command, path, tmp_path / "out", *DENSE, *words)
    assert found == {
        ("A", "x"): "newer",
        ("B", "x"): "last of a day",
        ("D", "x"): "has a text",
    }


def names(out):
    """Name of each user, by source id."""
    found = pl.read_parquet(out / "users.parquet")
    assert found.schema["name"] == pl.String
    return dict(found.select("source_id", "name").rows())


def test_a_user_is_called_by_the_last_name_given(tmp_path, command):
    path = tmp_path / "reviews.json"
    lines = [
        review("A", "x", "good", time=1, reviewerName="Ann Early"),
        review("A", "y", "good", time=5, reviewerName='Ann &quot;Bee&quot;  O&#39;Late "x"'),
        # Neither text nor rating of these counts, and the name does.
        review("B", "x", None, time=1, reviewerName="Bob"),
        review("B", "x", "bad", time=7, stars=1.0, reviewerName="Bob Later"),
        review("B", "y", "good", time=2, reviewerName=" "),
        review("B", "z", "good", time=2),
        review("C", "x", "good", reviewerName=None),
        review("D", "x", "bad", stars=9.0, reviewerName="No Row"),
        review("D", "x", "good"),
        review("E", "x", "bad", stars=1.0, reviewerName="Not Kept"),
    ]
    path.write_text("\n".join([*filler(), *lines]))
    prepared(command, path, tmp_path / "out", *DENSE, "--min-weight", 3, "--max-bad-share", 0.1)
    assert names(tmp_path / "out") == {
        **{f"F{n}": None for n in range(4)},
        **{"A": 'Ann "Bee" O\'Late "x"', "B": "Bob Later", "C": None, "D": None},
    }


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ('"Jane Doe"', "Jane Doe"),
        ('"[Jane]"', "[Jane]"),
        (r'"half \ud83d a"', "half ? a"),
        ('"' + "many names " * 20 + '"', ("many names " * 9).strip()),
        *((odd, None) for odd in ("null", '""', "5", "true", '["a"]', '{"an": "object"}')),
    ],
)
@pytest.mark.parametrize("beside", ["", "no JSON\n"])
def test_a_name_is_read_alike_whatever_its_neighbours(tmp_path, command, name, wanted, beside):
    path = tmp_path / "reviews.json"
    row = '{"reviewerID": "U", "asin": "I", "overall": 5, "unixReviewTime": 3, "reviewerName": '
    path.write_text("\n".join([*filler(), row + name + "}"]) + "\n" + beside)
    found = prepared(command, path, tmp_path / "out", *DENSE, "--max-bad-share", 0.5)
    assert found == {}
    assert names(tmp_path / "out")["U"] == wanted


def test_a_file_that_changed_meanwhile_is_refused(tmp_path):
    path = tmp_path / "reviews.json"
    path.write_text(review("A", "x", "good") + "\n")
    with pytest.raises(UserError, match="changed while it was being read"):
        list(review_texts(path, "0" * 64))


def test_a_failure_leaves_nothing_behind(tmp_path):
    path = tmp_path / "reviews.parquet"
    path.write_bytes(b"earlier")

    def texts():
        yield pl.DataFrame(
            {"user": ["A"], "item": ["x"], "time": [1], "text": ["good"], "name": ["Ann"]}
        )
        raise UserError("changed")

    ids = (pl.Series(["A"]), pl.Series(["x"]))
    frame = pl.DataFrame({"user": [1], "item": [1], "timestamp": [1]})
    with pytest.raises(UserError, match="changed"):
        write_reviews(path, texts(), *ids, frame, np.array([0]))
    assert [file.name for file in tmp_path.iterdir()] == ["reviews.parquet"]
    assert path.read_bytes() == b"earlier"


USERS, ITEMS = 6, 5


@settings(max_examples=40, deadline=None)
@given(
    kept=st.lists(
        st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1)), min_size=1, unique=True
    ),
    rows=st.lists(
        # One id more on each side: users and items that were not kept.
        st.tuples(
            st.integers(0, USERS),
            st.integers(0, ITEMS),
            st.integers(0, 1),
            st.text(max_size=3),
            st.none() | st.sampled_from(["Ann", "Bo &amp; Co", "", " "]),
        ),
        max_size=60,
    ),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    run=st.integers(1, 200),
    group=st.integers(1, 9),
)
def test_runs_and_groups_do_not_show(kept, rows, cuts, run, group):
    users = pl.Series([f"U{user}" for user in range(USERS)])
    items = pl.Series([f"I{item}" for item in range(ITEMS)])
    frame = pl.DataFrame(
        [(user + 1, item + 1, (user + item) % 2) for user, item in kept],
        schema={"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64},
        orient="row",
    )
    part = np.array([user % 3 for user, _ in kept], np.int8)
    wanted = {}
    names = [None] * USERS
    for user, item, time, text, name in rows:
        if user < USERS and clean(name):
            names[user] = clean(name)
        if (user, item) in kept and time == (user + item) % 2 and clean(text):
            name = ("train", "valid", "test")[user % 3]
            wanted[user + 1, item + 1] = (user + 1, item + 1, name, clean(text))
    ends = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    blocks = [
        pl.DataFrame(
            [(f"U{u}", f"I{i}", *rest) for u, i, *rest in rows[start:end]],
            schema=REVIEW_SCHEMA,
            orient="row",
        )
        for start, end in pairwise(ends)
    ]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reviews, "RUN", run)
        patch.setattr(reviews, "GROUP", group)
        paths = [Path(folder, name) for name in ("one.parquet", "two.parquet")]
        for path in paths:
            written = write_reviews(path, iter(blocks), users, items, frame, part)
        found = pl.read_parquet(paths[0])
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert found.rows() == [wanted[pair] for pair in sorted(wanted)]
    assert written.reviews == len(wanted)
    assert written.names.to_list() == names
