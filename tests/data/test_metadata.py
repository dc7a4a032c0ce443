"""Metadata: entities, nested categories, articles, literals, joins."""

import gzip
import json

import polars as pl
import pytest

from shielded_recrl.data import metadata

LINES = [
    "{'asin': 'A1', 'title': 'Salt &amp;amp; <i>Ember</i>', 'categories': "
    "[['Books', 'Fantasy'], ['Books', 'Fantasy', 'Epic']], 'description': 'It&#39;s  good.'}",
    '{"parent_asin": "A2", "title": "Json Book", "categories": ["Books", "Travel"], '
    '"description": ["One.", "Two."]}',
    "{'asin': 'A3', 'categories': [['Books']]}",
    "{'asin': 'ELSEWHERE', this line is broken but not wanted",
]


def book_rows(tmp_path, lines, wanted):
    path = tmp_path / "meta.json.gz"
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return metadata.load_books(path, wanted)


def test_books_of_2014_and_2023(tmp_path):
    found = book_rows(tmp_path, LINES, {"A1", "A2", "A3", "A4"})
    assert found.read == 4
    assert found.bad == {}
    assert found.frame.rows() == [
        ("A1", "Salt & Ember", "It's good.", ["Fantasy", "Epic"]),
        ("A2", "Json Book", "One. Two.", ["Travel"]),
        ("A3", None, "", []),
    ]


def test_a_broken_line_of_a_wanted_book_is_counted(tmp_path):
    found = book_rows(tmp_path, [*LINES, "{'asin': 'A4', 'title': "], {"A4"})
    assert found.bad == {"unreadable": 1}
    assert found.frame.is_empty()


def test_literals_are_never_executed(tmp_path):
    found = book_rows(tmp_path, ["{'asin': 'A1', 'title': str(1 + 1)}"], {"A1"})
    assert found.bad == {"unreadable": 1}


def test_movies_lose_year_and_trailing_article(tmp_path):
    path = tmp_path / "movies.csv"
    path.write_text(
        "movieId,title,genres\n"
        '1,"Matrix, The (1999)",Action|Sci-Fi\n'
        '2,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Fantasy\n'
        "3,Emma (1996),Romance\n4,Emma (2009),Romance\n5,Babylon 5,(no genres listed)\n",
        encoding="utf-8",
    )
    found = metadata.load_ml25m(path, {"1", "2", "3", "4", "5"})
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


def test_steam_joins_on_lower_case_and_the_first_row_wins(tmp_path):
    path = tmp_path / "games.json"
    path.write_text(
        "{u'app_name': u'DOTA 2', u'genres': [u'Action'], u'tags': [u'MOBA', u'Team']}\n"
        "{u'app_name': u'Dota 2', u'genres': [u'Other']}\n"
        "{u'title': u'Tom &amp; Co', u'tags': [u'A', u'B', u'C', u'D']}\n"
        "{u'id': u'1'}\n"
    )
    found = metadata.load_steam(path, {"Dota 2", "dota 2", "Tom & Co", "Unknown"})
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


def test_json_and_literal_lines_say_the_same(tmp_path):
    row = {"asin": "A1", "title": "It's <b>x</b>", "categories": [["Books", "Cooking"]]}
    frames = [book_rows(tmp_path, [dump(row)], {"A1"}).frame for dump in (json.dumps, repr)]
    assert frames[0].equals(frames[1])
    assert isinstance(frames[0], pl.DataFrame)
    assert len(frames[0]) == 1
