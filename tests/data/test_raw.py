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
TIMES = ["1", "+9", " 9", "9 ", "0", "-3", "", "x", "1.0", "1e3", "9223372036854775808", "1_0"]
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
