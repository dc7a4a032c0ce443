"""The prepare command: real files, invariants of its tables, and every kind of bad input."""

import gzip
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.data.prepare import main
from shielded_recrl.data.quarantine import Quarantine
from shielded_recrl.data.raw import LOADERS
from shielded_recrl.data.settings import PrepareSettings

HEADER = "userId,movieId,rating,timestamp\n"
NAMES = ("interactions", "train", "valid", "test", "items", "users")


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(folder / f"{name}.parquet") for name in NAMES}


def stats(folder: Path) -> dict:
    return json.loads((folder / "stats.json").read_text())


def quarantine(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def check(folder: Path, core: int = 1) -> dict[str, pl.DataFrame]:
    """What holds for every prepared dataset."""
    found = tables(folder)
    whole, items, users = (found[name] for name in ("interactions", "items", "users"))
    assert dict(whole.schema) == {
        "user": pl.Int32,
        "item": pl.Int32,
        "timestamp": pl.Int64,
        "order": pl.Int32,
        "weight": pl.Float32,
    }
    assert whole.select("user", "item").is_duplicated().sum() == 0
    assert (
        pl.concat(found[part] for part in ("train", "valid", "test"))
        .sort("user", "order")
        .equals(whole)
    )
    for name, key in (("items", "item"), ("users", "user")):
        assert found[name][key].to_list() == list(range(1, len(found[name]) + 1))
        assert set(whole[key]) == set(found[name][key])
        assert whole[key].value_counts()["count"].min() >= core
    counts = dict(found["train"]["item"].value_counts().rows())
    assert items["popularity"].to_list() == [counts.get(item, 0) for item in items["item"]]
    assert items["title"].null_count() == items["text"].null_count() == 0
    assert users["group"].null_count() == len(users)
    about = stats(folder)
    assert about["rows_read"] == about["kept"] + sum(about["dropped"].values())
    assert (about["kept"], about["users"], about["items"]) == (len(whole), len(users), len(items))
    assert about["density"] == pytest.approx(len(whole) / len(users) / len(items))
    return found


def test_movielens(shared_data, tmp_path, command):
    raw = shared_data / "ml25m"
    words = ("--interactions", raw / "ratings.csv", "--metadata", raw / "movies.csv")
    ended = command("prepare", "--dataset", "ml25m", *words, "--out", tmp_path, "--min-weight", 4)
    assert ended.code == 0
    assert "no title" not in ended.stderr
    found = check(tmp_path, core=5)
    about = stats(tmp_path)
    assert about["rows_read"] == 100_836
    assert about["dropped"]["below min_weight"] == 52_256
    assert about["sequential"]
    assert found["interactions"]["weight"].min() == 4
    assert "The Shawshank Redemption" in set(found["items"]["title"])


def test_movielens_whole(shared_data, tmp_path, command):
    raw = shared_data / "ml25m"
    words = ("--interactions", raw / "ratings.csv", "--min-interactions", 1, "--out", tmp_path)
    assert command("prepare", "--dataset", "ml25m", *words).code == 0
    about = stats(tmp_path)
    assert (about["kept"], about["users"], about["dropped"]) == (100_836, 610, {})
    assert (about["users_read"], about["items_read"]) == (610, 9_724)


def test_movielens_zip_is_the_same_as_its_files(shared_data, tmp_path, command):
    raw = shared_data / "ml25m"
    packed = tmp_path / "ml-25m.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("ratings.csv", "movies.csv"):
            archive.write(raw / name, f"ml-25m/{name}")
    one, two = tmp_path / "one", tmp_path / "two"
    words = ("--interactions", raw / "ratings.csv", "--metadata", raw / "movies.csv")
    assert command("prepare", "--dataset", "ml25m", *words, "--out", one).code == 0
    assert (
        command("prepare", "--dataset", "ml25m", "--interactions", packed, "--out", two).code == 0
    )
    for name in NAMES:
        assert (one / f"{name}.parquet").read_bytes() == (two / f"{name}.parquet").read_bytes()


def test_steam(shared_data, tmp_path, command):
    raw = shared_data / "steam"
    words = (
        *("--interactions", raw / "steam-200k.csv.gz", "--metadata", raw / "steam_games.json.gz"),
        *("--out", tmp_path, "--min-interactions", 1),
    )
    assert command("prepare", "--dataset", "steam", *words).code == 0
    found = check(tmp_path)
    about = stats(tmp_path)
    assert (about["rows_read"], about["users"], about["items"]) == (200_000, 12_393, 5_155)
    assert (about["users_read"], about["items_read"]) == (12_393, 5_155)
    assert quarantine(tmp_path) == []
    assert about["metadata"] == {"rows_read": 32_135, "bad": {}, "matched": 2_545, "untitled": 0}
    assert not about["sequential"]
    assert found["interactions"]["timestamp"].null_count() == len(found["interactions"])
    # Purchase rows add no hours: all hours are those of the play rows.
    rows = pl.read_csv(
        raw / "steam-200k.csv.gz",
        has_header=False,
        new_columns=["user", "title", "behaviour", "hours", "zero"],
    )
    played = rows.filter(pl.col("behaviour") == "play")["hours"].sum()
    assert found["interactions"]["weight"].cast(pl.Float64).sum() == pytest.approx(played, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "read", "users", "items"),
    [
        ("amazon_schema/Musical_Instruments_5.json.gz", 10_261, 1_429, 900),
        ("amazon_schema/All_Beauty_5.json.gz", 5_269, 137, 24),
    ],
)
def test_amazon(shared_data, tmp_path, command, name, read, users, items):
    words = ("--interactions", shared_data / name, "--out", tmp_path)
    ended = command("prepare", "--dataset", "books", *words)
    assert ended.code == 0
    assert f"{items} of {items} items have no title" in ended.stderr
    check(tmp_path, core=5)
    about = stats(tmp_path)
    assert (about["rows_read"], about["users"], about["items"]) == (read, users, items)


def test_first_real_books_as_they_are(shared_data, tmp_path):
    path = shared_data / "books" / "reviews_Books_5_first1000.json.gz"
    with Quarantine(tmp_path / "quarantine.jsonl") as aside:
        raw = LOADERS["books"](path, aside, tmp_path)
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert (raw.read, dict(aside.counts)) == (len(lines), {}) == (1000, {})
    assert raw.users.source(raw.columns["user"]).to_list() == [row["reviewerID"] for row in lines]
    assert raw.items.source(raw.columns["item"]).to_list() == [row["asin"] for row in lines]
    assert raw.columns["time"].tolist() == [row["unixReviewTime"] for row in lines]


def test_first_real_books(shared_data, tmp_path, command):
    # Too sparse for a split of its own: 996 readers of a thousand reviews. One joined reader of
    # everything gives every part a row, and every book of the file its metadata.
    raw = shared_data / "books"
    lines = gzip.decompress((raw / "reviews_Books_5_first1000.json.gz").read_bytes()).splitlines()
    reviews = tmp_path / "reviews.json.gz"
    extra = []
    for number, asin in enumerate(sorted({json.loads(line)["asin"] for line in lines})):
        row = {"reviewerID": "ALL", "asin": asin, "overall": 5.0, "unixReviewTime": number + 1}
        extra.append(json.dumps(row).encode())
    reviews.write_bytes(gzip.compress(b"\n".join([*lines, *extra])))
    words = ("--interactions", reviews, "--metadata", raw / "meta_Books_1000.json.gz")
    out = tmp_path / "out"
    ended = command(
        *("prepare", "--dataset", "books", *words, "--out", out, "--min-interactions", 1)
    )
    assert ended.code == 0
    items = check(out)["items"]
    about = stats(out)
    assert about["rows_read"] == 1000 + len(extra)
    assert about["metadata"]["rows_read"] == 1000
    assert about["metadata"]["untitled"] == items["title"].str.starts_with("Book 0").sum()
    assert not items["title"].str.contains("&amp;", literal=True).any()


def test_books_of_2023_have_milliseconds(tmp_path, command):
    path = tmp_path / "Books.csv.gz"
    rows = [(f"U{u}", f"B{i}", 5.0, 1_500_000_000_000 + 10 * i) for u in range(5) for i in range(5)]
    text = "user_id,parent_asin,rating,timestamp\n" + "".join(
        f"{','.join(map(str, row))}\n" for row in reversed(rows)
    )
    path.write_bytes(gzip.compress(text.encode()))
    out = tmp_path / "out"
    assert command("prepare", "--dataset", "books", "--interactions", path, "--out", out).code == 0
    found = check(out, core=5)
    assert set(found["interactions"]["timestamp"]) == {1_500_000_000}
    # Ten milliseconds apart still tell the order, although the seconds are equal.
    assert found["test"]["item"].to_list() == [5] * 5


def test_days_keep_file_order(tmp_path, command):
    path = tmp_path / "reviews.json"
    rows = [
        {"reviewerID": f"U{u}", "asin": f"B{i}", "overall": 5, "unixReviewTime": 86_400}
        for u in range(5)
        for i in (3, 1, 4, 2, 5)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = tmp_path / "out"
    assert command("prepare", "--dataset", "books", "--interactions", path, "--out", out).code == 0
    first = tables(out)["interactions"].filter(pl.col("user") == 1)
    assert first["item"].to_list() == [3, 1, 4, 2, 5]


def test_a_repeated_item_counts_once_with_its_last_rating(ratings, tmp_path, command):
    with ratings.open("a") as stream:
        stream.write("1,1,2.5,999999\n")
    out = tmp_path / "out"
    words = ("--interactions", ratings, "--out", out)
    assert command("prepare", "--dataset", "ml25m", *words).code == 0
    found = check(out, core=5)
    assert stats(out)["dropped"] == {"repeated user and item": 1}
    last = found["test"].filter(pl.col("user") == 1)
    assert last.select("item", "weight").rows() == [(1, 2.5)]


def test_a_weight_at_the_threshold_is_kept(tmp_path, command):
    path = tmp_path / "steam.csv"
    path.write_text(
        "".join(f'{u},"G{g}",play,0.1,0\n' for u in range(5) for g in range(5))
        + '0,"G9",purchase,1.0,0\n'
    )
    out = tmp_path / "out"
    words = ("--interactions", path, "--out", out, "--min-weight", 0.1)
    assert command("prepare", "--dataset", "steam", *words).code == 0
    assert stats(out)["kept"] == 25
    assert stats(out)["dropped"] == {"below min_weight": 1}


@settings(max_examples=15, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.integers(2, 4),
    st.sampled_from(["per_user", "leave_one_out", "global_time"]),
)
def test_row_order_is_irrelevant(source, core, kind):
    cells = [(u, i) for u in range(8) for i in range(8) if source.random() < 0.9]
    times = source.sample(range(1, 1000), len(cells))
    rows = [f"{u},{i},4.0,{t}\n" for (u, i), t in zip(cells, times, strict=True)]
    folder = Path(tempfile.mkdtemp())
    try:
        found = []
        for name in ("one", "two"):
            path = folder / f"{name}.csv"
            path.write_text(HEADER + "".join(rows))
            main(
                dataset="ml25m",
                interactions=path,
                out=folder / name,
                settings=PrepareSettings(min_interactions=core, split=kind),
            )
            found.append(check(folder / name, core=core))
            random.Random(1).shuffle(rows)
        assert all(found[0][name].equals(found[1][name]) for name in NAMES)
    finally:
        shutil.rmtree(folder)


def test_where_times_are_equal_the_order_of_the_file_stands(tmp_path, command):
    """Mixing rows of different users changes nothing; a user's own order does."""
    rows = [(u, i) for u in range(1, 7) for i in range(1, 7)]
    mixed = sorted(rows, key=lambda row: row[1])
    turned = rows[::-1]
    last = []
    for name, order in (("rows", rows), ("mixed", mixed), ("turned", turned)):
        path = tmp_path / f"{name}.csv"
        path.write_text(HEADER + "".join(f"{u},{i},4.0,7\n" for u, i in order))
        out = tmp_path / name
        words = ("--dataset", "ml25m", "--interactions", path, "--out", out)
        assert command("prepare", *words).code == 0
        last.append(set(tables(out)["test"]["item"]))
    assert last == [{6}, {6}, {1}]


def test_unreadable_rows_are_counted_by_reason(ratings, tmp_path, command):
    with ratings.open("a") as stream:
        stream.write("7,,4.0,1\n7,1,four,1\n7,1,nan,1\n7,1,9.5,1\n7,1,4.0,soon\n7,1\n")
        stream.write("7,1,4.0,0\n7,1,4.0,-5\nx,1,4.0,5\n-7,1,4.0,5\n7,1,4.0,5,6\n")
        stream.write('7,1,4.0,"5\n')
    with ratings.open("ab") as stream:
        stream.write(b"7,1\xff,4.0,5\n")
    out = tmp_path / "out"
    words = ("prepare", "--dataset", "ml25m", "--interactions", ratings, "--out", out)
    assert command(*words, "--max-bad-share", 0.3).code == 0
    check(out)
    assert stats(out)["rows_read"] == 36 + 13
    assert stats(out)["dropped"] == {
        "id is no number": 1,
        "id out of range": 1,
        "missing field": 2,
        "not UTF-8": 1,
        "rating out of range": 2,
        "time not positive": 2,
        "too many fields": 1,
        "unreadable number": 2,
        "unreadable quotes": 1,
    }
    rows = quarantine(out)
    assert [row["line"] for row in rows] == list(range(38, 51))
    assert rows[0] == {
        "file": str(ratings),
        "line": 38,
        "reason": "missing field",
        "text": "7,,4.0,1",
    }
    assert rows[-1]["text"] == "7,1\ufffd,4.0,5"
    refused = command(*words)
    assert refused.code == 1
    assert "13 of 49 rows are unreadable" in refused.message
    assert "first line 38: missing field; line 39: unreadable number" in refused.message
    assert "max_bad_share" in refused.message
    assert "\n" not in refused.message


def test_unreadable_reviews_are_counted_by_reason(tmp_path, command):
    path = tmp_path / "reviews.json"
    good = {"overall": 5, "unixReviewTime": 1}
    rows = [
        json.dumps({"reviewerID": f"U{u}", "asin": f"B{i}", **good})
        for u in range(5)
        for i in range(5)
    ]
    bad = {"reviewerID": "U", "asin": "B", **good}
    rows += ["{", "7", json.dumps({**bad, "overall": None}), json.dumps({**bad, "overall": 6})]
    rows += [json.dumps({**bad, "unixReviewTime": value}) for value in ("x", 1e300, float("inf"))]
    path.write_text("\n".join(rows))
    out = tmp_path / "out"
    words = ("--interactions", path, "--out", out, "--max-bad-share", 0.5)
    assert command("prepare", "--dataset", "books", *words).code == 0
    assert stats(out)["dropped"] == {
        "missing field": 1,
        # With that of an infinite time, which JSON cannot write.
        "not JSON": 3,
        "rating out of range": 1,
        "unreadable number": 2,
    }


def test_unreadable_plays_are_counted_by_reason(tmp_path, command):
    path = tmp_path / "steam.csv"
    rows = [f'{u},"G{g}",purchase,1.0,0\n' for u in range(5) for g in range(5)]
    rows += ['1,"G1",rent,1.0,0\n', '1,"G1",play,-3,0\n', '1,"G1",play,inf,0\n', '1,"",play,1,0\n']
    path.write_text("".join(rows))
    out = tmp_path / "out"
    words = ("--interactions", path, "--out", out, "--max-bad-share", 0.5)
    assert command("prepare", "--dataset", "steam", *words).code == 0
    assert stats(out)["dropped"] == {
        "missing field": 1,
        "neither purchase nor play": 1,
        "unreadable hours": 2,
    }
    assert tables(out)["interactions"]["weight"].to_list() == [0.0] * 25


REVIEW = json.dumps({"reviewerID": "U", "asin": "B", "overall": 5, "unixReviewTime": 1})
# Names of tests hold these bytes, and pytest-xdist wants the same names from every worker.
PACKED = gzip.compress(f"{REVIEW}\n".encode() * 500, mtime=0)
PACKED_CSV = gzip.compress((HEADER + "1,1,4.0,1\n" * 5000).encode(), mtime=0)


@pytest.mark.parametrize(
    ("dataset", "name", "content", "expected"),
    [
        ("ml25m", "gone.csv", None, "no such file"),
        ("books", "gone.json.gz", None, "no such file"),
        ("books", "cut.json.gz", PACKED[: len(PACKED) // 2], "damaged gzip"),
        ("ml25m", "cut.csv.gz", PACKED_CSV[: len(PACKED_CSV) // 2], "damaged gzip"),
        ("books", "plain.json.gz", REVIEW.encode(), "damaged gzip"),
        ("ml25m", "cut.zip", b"PK\x03\x04 not a zip", "damaged zip"),
        ("ml25m", "ratings.csv", b"user,item,rating\n1,2,3\n", "userId, movieId"),
        ("ml25m", "ratings.csv", b"1,2,4.0,5\n1,3,4.0,6\n", "without a header"),
        ("books", "Books.csv", b"asin,user,rating,timestamp\na,b,5,1\n", "user_id, parent_asin"),
        ("books", "reviews.json", b'{"user": 1}\n', "reviewerID, asin"),
        ("steam", "steam.csv", b'1,"G",play,3.0\n', "line 1: missing field"),
        ("steam", "steam.csv", b'1,"G,play,3.0,0\n', "line 1: unreadable quotes"),
        ("ml25m", "ratings.csv", b"", "userId, movieId"),
        ("ml25m", "ratings.csv", HEADER.encode(), "no rows"),
        ("books", "reviews.json", b"", "no rows"),
        ("ml25m", "ratings.csv", (HEADER + "1,1,4.0,1\n").encode(), "lower them"),
        ("anime", "ratings.csv", b"", "books, ml25m, steam"),
    ],
)
def test_bad_interactions_give_one_line_and_no_file(
    tmp_path, command, dataset, name, content, expected
):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    out = tmp_path / "out"
    words = ("--dataset", dataset, "--interactions", path, "--out", out)
    ended = command("prepare", *words)
    assert ended.code == 1
    assert expected in ended.message
    assert "\n" not in ended.message
    assert dataset == "anime" or str(path) in ended.message
    # An archive may have been unpacked there.
    assert not list(out.glob("*"))


def test_zip_without_ratings(tmp_path, command):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    words = ("--dataset", "ml25m", "--interactions", path, "--out", tmp_path / "out")
    assert "0 files called ratings.csv inside" in command("prepare", *words).message


def test_an_empty_split_is_refused(tmp_path, command):
    path = tmp_path / "ratings.csv"
    path.write_text(HEADER + "1,1,4.0,1\n2,2,4.0,2\n")
    out = tmp_path / "out"
    words = ("--interactions", path, "--out", out, "--min-interactions", 1)
    ended = command("prepare", "--dataset", "ml25m", *words)
    assert "the valid split is empty" in ended.message
    assert not out.exists()


def test_global_time_on_steam_is_refused(tmp_path, command):
    path = tmp_path / "steam.csv"
    path.write_text("".join(f'{u},"G{g}",play,2.0,0\n' for u in range(5) for g in range(5)))
    words = ("--interactions", path, "--out", tmp_path / "out", "--split", "global_time")
    assert "use per_user" in command("prepare", "--dataset", "steam", *words).message


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "no such file"), (b"id,name\n1,2\n", "movieId, title, genres")],
)
def test_bad_metadata(ratings, tmp_path, command, content, expected):
    path = tmp_path / "movies.csv"
    if content is not None:
        path.write_bytes(content)
    words = ("--interactions", ratings, "--metadata", path, "--out", tmp_path / "out")
    ended = command("prepare", "--dataset", "ml25m", *words)
    assert ended.code == 1
    assert expected in ended.message
    assert str(path) in ended.message
    assert not (tmp_path / "out").exists()


def test_a_failed_run_leaves_an_earlier_result_alone(ratings, tmp_path, command):
    out = tmp_path / "out"
    words = ("prepare", "--dataset", "ml25m", "--interactions", ratings, "--out", out)
    assert command(*words).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    ratings.write_text(HEADER)
    assert command(*words).code == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_raw_file_is_read_in_place(ratings, tmp_path, command):
    packed = tmp_path / "raw" / "ml-25m.zip"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(ratings, "ml-25m/ratings.csv")
        archive.writestr("ml-25m/movies.csv", "movieId,title,genres\n1,One (1999),Drama\n,x,y\n")
    before = packed.read_bytes()
    packed.parent.chmod(0o500)
    out = tmp_path / "out"
    words = ("--interactions", packed, "--out", out, "--max-bad-share", 0.5)
    assert command("prepare", "--dataset", "ml25m", *words).code == 0
    assert packed.read_bytes() == before
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.parquet" for name in (*NAMES, "reviews")),
        "stats.json",
        "quarantine.jsonl",
    }
    (bad,) = quarantine(out)
    assert (bad["file"], bad["line"]) == (f"{packed}/movies.csv", 3)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Three million rows are 60 MB of columns; their text as Python objects would be gigabytes."""
    path = tmp_path / "ratings.csv"
    rows = np.arange(3_000_000)
    pl.DataFrame(
        {"userId": rows // 60, "movieId": rows % 60, "rating": 4.0, "timestamp": rows + 1}
    ).write_csv(path)
    words = ("--dataset", "ml25m", "--interactions", path, "--out", tmp_path / "out")
    peak = "import resource; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    run = f"import subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); {peak}"
    command = [sys.executable, "-m", "shielded_recrl.data", "prepare", *map(str, words)]
    done = subprocess.run(
        [sys.executable, "-c", run, *command], check=True, capture_output=True, text=True
    )
    assert stats(tmp_path / "out")["kept"] == 3_000_000
    assert int(done.stdout) < 450_000


def test_wanted_metadata_that_is_all_unreadable_is_refused(tmp_path, command):
    reviews, items = tmp_path / "reviews.json", tmp_path / "meta.jsonl"
    good = {"overall": 5, "unixReviewTime": 1}
    reviews.write_text(
        "".join(
            json.dumps({"reviewerID": f"U{u}", "asin": f"B{i}", **good}) + "\n"
            for u in range(5)
            for i in range(5)
        )
    )
    wanted = "".join(f'{{"asin": "B{i}", "title": "t"\n' for i in range(5))
    items.write_text(wanted + "".join(f'{{"asin": "Z{i}"}}\n' for i in range(1000)))
    words = ("--interactions", reviews, "--metadata", items, "--out", tmp_path / "out")
    ended = command("prepare", "--dataset", "books", *words)
    assert "5 of 5 rows are unreadable" in ended.message
    # A catalogue of other books is no error.
    items.write_text("".join(f'{{"asin": "Z{i}"}}\n' for i in range(10)))
    assert command("prepare", "--dataset", "books", *words).code == 0


def test_inputs_of_one_name_are_told_apart(ratings, tmp_path, command):
    items = tmp_path / "items" / ratings.name
    items.parent.mkdir()
    items.write_text("movieId,title,genres\n1,Emma (1996),Drama\n")
    out = tmp_path / "out"
    words = ("--interactions", ratings, "--metadata", items, "--out", out)
    assert command("prepare", "--dataset", "ml25m", *words).code == 0
    digests = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in (ratings, items)
    }
    assert stats(out)["inputs"] == digests
