"""Metadata: entities, nested categories, articles, literals, joins."""

import gzip
import json
import zipfile

import polars as pl
import pytest

from shielded_recrl.data import metadata
from shielded_recrl.data.quarantine import Quarantine
from shielded_recrl.errors import UserError

LINES = [
    "{'asin': 'A1', 'title': 'Salt &amp;amp; <i>Ember</i>', 'categories': "
    "[['Books', 'Fantasy'], ['Books', 'Fantasy', 'Epic']], 'description': 'It&#39;s  good.'}",
    '{"parent_asin": "A2", "title": "Json Book", "categories": ["Books", "Travel"], '
    '"description": ["One.", "Two."]}',
    "{'asin': 'A3', 'categories': [['Books']]}",
    "{'asin': 'ELSEWHERE', this line is broken but not wanted",
]


@pytest.fixture
def load(tmp_path):
    """Run a loader; returns what it found, and the rows it put aside."""

    def run(dataset, path, wanted):
        aside = tmp_path / "quarantine.jsonl"
        with Quarantine(aside) as quarantine:
            found = metadata.LOADERS[dataset](path, wanted, quarantine)
        rows = [json.loads(line) for line in aside.read_text().splitlines()]
        assert {row["file"] for row in rows} <= {str(path), f"{path}/movies.csv"}
        return found, [(row["line"], row["reason"], row["text"]) for row in rows]

    return run


@pytest.fixture
def book_rows(tmp_path, load):
    def run(lines, wanted):
        path = tmp_path / "meta.json.gz"
        path.write_bytes(
            gzip.compress(b"".join(getattr(x, "encode", lambda x=x: x)() + b"\n" for x in lines))
        )
        return load("books", path, wanted)

    return run


def test_books_of_2014_and_2023(book_rows):
    found, aside = book_rows(LINES, {"A1", "A2", "A3", "A4"})
    assert aside == []
    assert found.read == 4
    assert found.bad == {}
    assert found.frame.rows() == [
        ("A1", "Salt & Ember", "It's good.", ["Fantasy", "Epic"]),
        ("A2", "Json Book", "One. Two.", ["Travel"]),
        ("A3", None, "", []),
    ]


def test_bad_lines_of_wanted_books_are_counted_and_put_aside(book_rows):
    bad = [
        "{'asin': 'A4', 'title': ",
        '{"title": "cut before its i',
        b"{'asin': 'A4', 'title': '\xff'}",
        '["A4"]',
        '{"title": "no id"}',
        '{"asin": "A4", "parent_asin": 4}',
        "[" * 100_000,
    ]
    found, aside = book_rows([*LINES, "", *bad, '{"asin": "A4", "title": "Good"}'], {"A4"})
    assert found.read == 12
    assert found.bad == {"unreadable": 4, "not UTF-8": 1, "no id": 2}
    assert [(line, reason) for line, reason, _ in aside] == [
        (6, "unreadable"),
        (7, "unreadable"),
        (8, "not UTF-8"),
        (9, "unreadable"),
        (10, "no id"),
        (11, "no id"),
        (12, "unreadable"),
    ]
    assert aside[0][2] == bad[0]
    assert aside[2][2] == "{'asin': 'A4', 'title': '\ufffd'}"
    assert found.frame["title"].to_list() == ["Good"]


@pytest.mark.parametrize(
    "code", ["str(1 + 1)", "__import__('os').getcwd()", "[x for x in (1,)]", "f'{1}'", "open"]
)
def test_literals_are_never_executed(book_rows, code):
    found, aside = book_rows([f"{{'asin': 'A1', 'title': {code}}}"], {"A1"})
    assert found.bad == {"unreadable": 1}
    assert aside[0][:2] == (1, "unreadable")


def test_long_literals_are_not_parsed(book_rows, monkeypatch):
    monkeypatch.setattr(metadata, "LITERAL_LENGTH", 100)
    lines = [f"{{'asin': 'A{n}', 'title': '{'x' * n}'}}" for n in (50, 200)]
    found, _ = book_rows(lines, {"A50", "A200"})
    assert found.bad == {"unreadable": 1}
    assert found.frame["source_id"].to_list() == ["A50"]


def test_the_first_row_of_a_book_counts_and_order_is_that_of_the_file(book_rows, monkeypatch):
    monkeypatch.setattr(metadata, "CHUNK", 3)
    lines = [json.dumps({"parent_asin": f"A{n % 10}", "title": f"T{n}"}) for n in range(25)]
    found, _ = book_rows(lines, {f"A{n}" for n in range(8)})
    assert found.read == 25
    assert found.frame["title"].to_list() == [f"T{n}" for n in range(8)]


def test_an_id_inside_another_field_hides_no_book(book_rows):
    line = {"similar_item": [{"asin": "OTHER"}], "parent_asin": "A1", "title": "Found"}
    found, _ = book_rows([json.dumps(line)], {"A1"})
    assert found.frame["title"].to_list() == ["Found"]


def test_long_fields_are_cut_after_a_word(book_rows):
    line = {
        "asin": "A1",
        "title": "word " * 1000,
        "description": ["<p>" + "longer " * 100_000] * 2,
        "categories": ["Books", *(f"{n} " + "x" * 500 for n in range(500))],
    }
    found, _ = book_rows([json.dumps(line)], {"A1"})
    ((_, title, text, categories),) = found.frame.rows()
    assert title == ("word " * 60).rstrip()
    assert text == ("longer " * 143)[:1000].rstrip()
    assert len(categories) == metadata.NAMES - 1
    assert max(map(len, categories)) <= metadata.NAME_LENGTH


def test_half_a_character_is_replaced(book_rows):
    found, _ = book_rows(['{"asin": "A1", "title": "x \\ud83d y"}'], {"A1"})
    assert found.frame["title"].to_list() == ["x ? y"]


def test_nested_lists_of_any_depth(book_rows):
    line = '{"asin": "A1", "title": "T", "categories": ' + "[" * 900 + '"Deep"' + "]" * 900 + "}"
    found, _ = book_rows([line, '{"asin": "A2"}'], {"A1", "A2"})
    assert found.frame["source_id"].to_list() == ["A1", "A2"]


MOVIES = "movieId,title,genres\n1,Emma (1996),Romance\n2,Babylon 5,(no genres listed)\n"


def test_bad_movies_are_put_aside(tmp_path, load):
    path = tmp_path / "movies.csv"
    path.write_bytes(
        MOVIES.encode()
        + b'3,"Open (1991),Drama\n\n4,,Drama\n5,No genres\n6,\xff,Drama\n'
        + b'7,Last,X\n8,Toy Story, The (1995),Drama\n9,Emma,Drama,more\n10,"So ""be"" it",X\n'
    )
    found, aside = load("ml25m", path, set(map(str, range(1, 11))))
    assert found.read == 10
    assert found.bad == {
        "unreadable quotes": 1,
        "missing field": 2,
        "not UTF-8": 1,
        "too many fields": 2,
    }
    assert aside == [
        (4, "unreadable quotes", '3,"Open (1991),Drama'),
        (6, "missing field", "4,,Drama"),
        (7, "missing field", "5,No genres"),
        (8, "not UTF-8", "6,\ufffd,Drama"),
        (10, "too many fields", "8,Toy Story, The (1995),Drama"),
        (11, "too many fields", "9,Emma,Drama,more"),
    ]
    assert found.frame["title"].to_list() == ["Emma", "Babylon 5", "Last", 'So "be" it']


def test_bad_movies_count_among_the_rows(tmp_path, load):
    path = tmp_path / "movies.csv"
    path.write_text(MOVIES + '3,"' + "x" * 200_000 + '",Drama\n')
    found, aside = load("ml25m", path, {"1"})
    assert (found.parsed, found.bad) == (3, {"unreadable quotes": 1})
    assert aside[0][:2] == (4, "unreadable quotes")


def test_lines_of_unwanted_books_are_not_counted_as_parsed(book_rows):
    wanted = [f'{{"parent_asin": "W{i}", "title": "t"' for i in range(5)]
    others = [f'{{"parent_asin": "Z{i}", "title": "t"}}' for i in range(100)]
    found, _ = book_rows(wanted + others, {f"W{i}" for i in range(5)})
    assert (found.read, found.parsed, found.bad) == (105, 5, {"unreadable": 5})


def test_movies_in_the_published_zip(tmp_path, load):
    (tmp_path / "movies.csv").write_text(MOVIES)
    path = tmp_path / "ml-25m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml-25m/movies.csv", MOVIES + "9,,\n")
    plain, _ = load("ml25m", tmp_path / "movies.csv", {"1", "2"})
    packed, aside = load("ml25m", path, {"1", "2"})
    assert packed.frame.equals(plain.frame)
    assert aside == [(4, "missing field", "9,,")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "header is ''"),
        ("id,name\n1,x\n", "header is 'id,name', without movieId, title, genres; expected the"),
        ("movieId,title,genres\r1,x,y\r", "expected the columns movieId, title, genres"),
        ("movieId,title,genres\n", "no rows"),
    ],
)
def test_no_movies(tmp_path, load, content, says):
    path = tmp_path / "movies.csv"
    path.write_text(content)
    with pytest.raises(UserError) as raised:
        load("ml25m", path, {"1"})
    assert str(raised.value).startswith(str(path))
    assert says in str(raised.value)


def test_movies_lose_year_and_trailing_article(tmp_path, load):
    path = tmp_path / "movies.csv"
    path.write_text(
        "movieId,title,genres\n"
        '1,"Matrix, The (1999)",Action|Sci-Fi\n'
        '2,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Fantasy\n'
        "3,Emma (1996),Romance\n4,Emma (2009),Romance\n5,Babylon 5,(no genres listed)\n",
        encoding="utf-8",
    )
    found, _ = load("ml25m", path, {"1", "2", "3", "4", "5"})
    assert found.frame.rows() == [
        ("1", "The Matrix", "Released in 1999.", ["Action", "Sci-Fi"]),
        (
            "2",
            "The City of Lost Children (Cité des enfants perdus, La)",
            "Released in 1995.",
            ["Fantasy"],
        ),
        ("3", "Emma (1996)", "Released in 1996.", ["Romance"]),
        ("4", "Emma (2009)", "Released in 2009.", ["Romance"]),
        ("5", "Babylon 5", "", []),
    ]


def test_steam_joins_on_lower_case_and_the_first_row_wins(tmp_path, load):
    path = tmp_path / "games.json"
    path.write_text(
        "{u'app_name': u'DOTA 2', u'genres': [u'Action'], u'tags': [u'MOBA', u'Team']}\n"
        "{u'app_name': u'Dota 2', u'genres': [u'Other']}\n"
        "{u'title': u'Tom &amp; Co', u'tags': [u'A', u'B', u'C', u'D']}\n"
        "{u'id': u'1'}\n"
    )
    found, _ = load("steam", path, {"Dota 2", "dota 2", "Tom & Co", "Unknown"})
    assert found.frame.sort("source_id").select("source_id", "text", "categories").rows() == [
        ("Dota 2", "MOBA, Team", ["Action"]),
        ("Tom & Co", "A, B, C, D", ["A", "B", "C"]),
        ("dota 2", "MOBA, Team", ["Action"]),
    ]


@pytest.mark.parametrize(("raw", "plain"), [(None, None), (float("nan"), None), ("  ", None)])
def test_no_title_is_null(raw, plain):
    assert metadata.clean(raw) is plain


def test_less_than_is_no_tag():
    assert metadata.clean("I &lt;3 you, 2 < 3 > 1") == "I <3 you, 2 < 3 > 1"


def test_json_and_literal_lines_say_the_same(book_rows):
    row = {"asin": "A1", "title": "It's <b>x</b>", "categories": [["Books", "Cooking"]]}
    frames = [book_rows([dump(row)], {"A1"})[0].frame for dump in (json.dumps, repr)]
    assert frames[0].equals(frames[1])
    assert isinstance(frames[0], pl.DataFrame)
    assert len(frames[0]) == 1
