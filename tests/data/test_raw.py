"""Reading in blocks: the strict way and the way line by line agree, and nothing is lost."""

import gzip
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.data import raw
from shielded_recrl.data.quarantine import Quarantine
from shielded_recrl.errors import UserError

HEADER = b"userId,movieId,rating,timestamp\n"
HEADER_2023 = b"user_id,parent_asin,rating,timestamp\n"
# Fields that one parser may take and another refuse.
IDS = [
    "1",
    "007",
    "+7",
    " 7",
    "7 ",
    "-1",
    "",
    "x",
    "1.0",
    "1_0",
    "2147483647",
    "2147483648",
    "\u0661",
]
STARS = ["5.0", "5", "4.", ".5", "1e0", " 3", "5.5", "0", "-1", "nan", "inf", "", "x", "1_0"]
# Those that only float32 tells from 5 and from 0.
STARS += ["5.0000000001", "4.9999999999", "1e-60", "1e39", "\u0661"]
TIMES = ["1", "+9", " 9", "9 ", "0", "-3", "", "x", "1.0", "1e3", "9223372036854775808", "1_0"]
TIMES += ["1_000", "\u0661"]
BAD = b"7,7,bad,7\n"


def load(path, dataset="ml25m"):
    """What a loader found: its rows with their source ids, the rows read, and the bad lines."""
    aside = path.parent / "quarantine.jsonl"
    with Quarantine(aside) as quarantine:
        found = raw.LOADERS[dataset](path, quarantine, path.parent)
    bad = [json.loads(line) for line in aside.read_text().splitlines()]
    columns = found.columns
    assert found.read == found.merged + len(columns["user"]) + len(bad)
    users = found.users.source(columns["user"]).to_list()
    items = found.items.source(columns["item"]).to_list()
    numbers = (columns[name].tolist() for name in ("weight", "time"))
    rows = list(zip(users, items, *numbers, strict=True))
    return rows, [(row["line"], row["reason"]) for row in bad], found


@pytest.mark.parametrize(("dataset", "header"), [("ml25m", HEADER), ("books", HEADER_2023)])
def test_a_row_is_read_alike_whatever_its_neighbours(tmp_path, dataset, header):
    """Each odd field, alone in a file, and beside a bad line that has all lines looked at."""
    path = tmp_path / "ratings.csv"
    fields = (IDS, IDS, STARS, TIMES)
    for place, odd in enumerate(fields):
        for field in odd:
            row = ["1", "2", "3.5", "4"]
            row[place] = field
            line = f"{','.join(row)}\n".encode()
            path.write_bytes(header + line)
            alone = load(path, dataset)
            path.write_bytes(header + line + BAD)
            beside = load(path, dataset)
            assert alone[0] == beside[0], line
            assert [*alone[1], (3, "unreadable number")] == beside[1], line


@pytest.mark.parametrize(
    "odd",
    [
        {"overall": "5"},
        {"overall": 5.5},
        {"overall": True},
        {"overall": None},
        {"unixReviewTime": "9"},
        {"unixReviewTime": 2**63},
        {"unixReviewTime": 1.0},
        {"unixReviewTime": -1},
        {"reviewerID": 7},
        {"reviewerID": ""},
        {"reviewerID": None},
        {"reviewerID": "é\n\\"},
        {"asin": ["B", 1]},
        {"asin": 0},
        {"asin": 1e3},
        {"asin": "1e3"},
        {"asin": -0.0},
        {"asin": True},
        {"reviewerID": 5.0},
        {"reviewerID": "\ud800"},
        {"reviewerID": "\0"},
        {"overall": 5.0000000001},
        {"overall": 4.9},
        {"overall": 1e-60},
        {"unixReviewTime": 5.9},
        {"unixReviewTime": True},
        {"unixReviewTime": "1_0"},
        {"more": {"deep": [None]}},
    ],
)
def test_a_review_is_read_alike_whatever_its_neighbours(tmp_path, odd):
    path = tmp_path / "reviews.json"
    row = {"reviewerID": "U", "asin": "B", "overall": 4.0, "unixReviewTime": 3} | odd
    path.write_text(json.dumps(row) + "\n")
    alone = load(path, "books")
    path.write_text(json.dumps(row) + "\n{\n")
    beside = load(path, "books")
    assert alone[0] == beside[0]
    assert [*alone[1], (2, "not JSON")] == beside[1]


@pytest.mark.parametrize(
    ("more", "stars"),
    [
        ('"overall": 1', 4.0),
        ('"overall": null', 4.0),
        ('"reviewerID": "V", "asin": "C", "unixReviewTime": 9', 4.0),
        ('"x": {"overall": 1}', 4.0),
    ],
)
@pytest.mark.parametrize("beside", ["", "{\n"])
def test_the_first_of_equal_keys_counts(tmp_path, more, stars, beside):
    path = tmp_path / "reviews.json"
    row = '{"reviewerID": "U", "asin": "B", "overall": 4.0, "unixReviewTime": 3, %s}\n'
    path.write_text(row % more + beside)
    assert load(path, "books")[0] == [("U", "B", stars, 3)]


def test_half_characters_are_no_ids(tmp_path):
    path = tmp_path / "reviews.json"
    row = '{"reviewerID": "%s", "asin": "B", "overall": 4.0, "unixReviewTime": 3}\n'
    path.write_text(row % "\\ud800" + row % "\\udc01" + row % "\\ud83d\\ude00")
    rows, bad, _ = load(path, "books")
    assert [user for user, *_ in rows] == ["\U0001f600"]
    assert bad == [(1, "id is no text"), (2, "id is no text")]


@pytest.mark.parametrize("pair", ["\\ud83d\\uee00", "\\uD83D\\u0041", "\\ud83d\\ud83d"])
def test_halves_of_two_characters_make_no_third(tmp_path, pair):
    """Polars makes one of any two."""
    path = tmp_path / "reviews.json"
    row = '{"reviewerID": "A%s", "asin": "B", "overall": 4.0, "unixReviewTime": 3}\n'
    path.write_text(row % pair)
    assert load(path, "books")[:2] == ([], [(1, "id is no text")])


@pytest.mark.parametrize(
    "odd",
    [
        {"overall": True},
        {"overall": "1_0"},
        {"overall": "\u0663"},
        {"unixReviewTime": True},
        {"unixReviewTime": 5.9},
        {"unixReviewTime": "1_0"},
        {"unixReviewTime": "\u0663"},
    ],
)
def test_what_is_no_number_in_a_review(tmp_path, odd):
    path = tmp_path / "reviews.json"
    row = {"reviewerID": "U", "asin": "B", "overall": 4.0, "unixReviewTime": 3}
    path.write_text(json.dumps(row | odd) + "\n")
    assert load(path, "books")[:2] == ([], [(1, "unreadable number")])


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("beside", ["", "{\n"])
def test_what_python_adds_to_json_is_none(tmp_path, constant, beside):
    path = tmp_path / "reviews.json"
    row = '{"reviewerID": "U", "asin": "B", "overall": 4.0, "unixReviewTime": 3, "helpful": [%s]}\n'
    path.write_text(row % constant + beside)
    rows, bad, _ = load(path, "books")
    assert (rows, bad[0]) == ([], (1, "not JSON"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1_0,2,4,3", "id is no number"),
        ("1,\u0662,4,3", "id is no number"),
        ("1,2,1_0,3", "unreadable number"),
        ("1,2,\u0663,3", "unreadable number"),
        ("1,2,4,1_000", "unreadable number"),
        ("1,2,4,\u0663", "unreadable number"),
        ("1,2,1e-60,3", "rating out of range"),
        ("1,2,1e39,3", "rating out of range"),
        ("1,2,5.000001,3", "rating out of range"),
    ],
)
def test_what_is_no_number_in_a_csv(tmp_path, row, reason):
    path = tmp_path / "ratings.csv"
    path.write_bytes(HEADER + f"{row}\n".encode())
    assert load(path)[:2] == ([], [(2, reason)])


@pytest.mark.parametrize("hours", ["1_0", "1e39", "3e38", "1000001", "nan", "-1", "\u0663"])
def test_what_is_no_number_of_hours(tmp_path, hours):
    path = tmp_path / "steam.csv"
    path.write_text(f"1,Game,play,{hours},0\n")
    assert load(path, "steam")[:2] == ([], [(1, "unreadable hours")])


@pytest.mark.parametrize(
    ("dataset", "name", "content"),
    [
        ("steam", "steam.csv", b"1,2,play,4,0\n"),
        ("books", "r.json", b'{"reviewerID":"1","asin":"2","overall":4,"unixReviewTime":3}\n'),
        ("books", "r.csv", HEADER_2023 + b"1,2,4,3\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path, monkeypatch, dataset, name, content, size):
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + content)
    monkeypatch.setattr(raw.blocks, "__defaults__", (size,))
    rows, bad, found = load(path, dataset)
    assert ([row[:2] for row in rows], bad) == ([("1", "2")], [])
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("row", "ids"),
    [(b"\xef\xbb\xbfA,I,5,9\n", ("\ufeffA", "I")), (b"A,I\r,5,9\n", ("A", "I\r"))],
)
def test_odd_bytes_stay_in_ids_whatever_their_neighbours(tmp_path, row, ids):
    path = tmp_path / "ratings.csv"
    for beside in (b"", BAD):
        path.write_bytes(HEADER_2023 + row + beside)
        assert [found[:2] for found in load(path, "books")[0]] == [ids]


@pytest.mark.parametrize(
    "content", [HEADER.replace(b"\n", b"\r") + b"1,2,3,4\r", b"x" * 200_000 + b"\n"]
)
def test_a_header_that_is_no_csv(tmp_path, content):
    path = tmp_path / "ratings.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected the columns userId") as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


lines = st.lists(
    st.one_of(
        st.tuples(*(st.sampled_from(part) for part in (IDS, IDS, STARS, TIMES))).map(",".join),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4.0), st.integers(1, 99)).map(
            lambda row: ",".join(map(str, row))
        ),
        st.sampled_from(["", "  ", '"1","2","3","4"', '"1,2,3,4', "1,2,3", "1,2,3,4,5"]),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(lines, st.integers(1, 60), st.booleans())
def test_block_size_does_not_show(tmp_path_factory, rows, size, packed):
    path = tmp_path_factory.mktemp("raw") / ("ratings.csv.gz" if packed else "ratings.csv")
    # Without a last line end, and with those of Windows.
    text = HEADER + "\r\n".join(rows).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    whole, bad, found = load(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw.blocks, "__defaults__", (size,))
        small, small_bad, again = load(path)
    assert (small, small_bad) == (whole, bad)
    assert found.read == sum(bool(row.strip()) for row in rows)
    assert found.sha256 == again.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_columns_are_found_by_name(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_bytes(b'\xef\xbb\xbftimestamp,"movieId",note,rating,userId\r\n8,3,hi,4.5,2\r\n')
    assert load(path)[0] == [(2, 3, 4.5, 8)]


def test_few_ids_out_of_many_numbers(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_bytes(HEADER + b"2000000000,5,4,1\n3,2147483647,4,2\n2000000000,5,4,3\n")
    rows, _, found = load(path)
    assert [row[:2] for row in rows] == [(2000000000, 5), (3, 2147483647), (2000000000, 5)]
    assert max(found.columns["user"].max(), found.columns["item"].max()) < 4


def test_columns_grow():
    columns = raw.Columns()
    part = [np.arange(700_000, dtype=kind) for kind in ("i4", "i4", "f4", "i8")]
    for _ in range(3):
        columns.append(*map(raw.pl.Series, part))
    for name, values in zip(raw.COLUMNS, part, strict=True):
        assert np.array_equal(columns.whole()[name], np.tile(values, 3))


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "ratings.csv"
    path.write_bytes(HEADER + b"1" * 5000)
    monkeypatch.setattr(raw, "MAX_LINE", 1000)
    with pytest.raises(UserError, match=r"ratings.csv: a line longer"):
        load(path)


def test_ahead_gives_all_values_and_the_error():
    assert list(raw.ahead(iter(range(5)))) == [0, 1, 2, 3, 4]

    def broken():
        yield 1
        raise UserError("damaged")

    values = raw.ahead(broken())
    assert next(values) == 1
    with pytest.raises(UserError, match="damaged"):
        next(values)
