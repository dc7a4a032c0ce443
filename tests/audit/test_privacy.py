"""Leaked ids, copied text, and the upper bound of a rate."""

import string
import unicodedata

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from shielded_recrl.audit import inputs
from shielded_recrl.audit.inputs import train_reviews
from shielded_recrl.audit.privacy import (
    copies,
    leaks,
    ngrams,
    occurring,
    phrases_of,
    upper_bound,
    user_ids,
    user_names,
    words,
)


@pytest.mark.parametrize(
    ("text", "leaked"),
    [
        ("Chosen for A1XQ7K by us", True),
        ("Chosen for a1xq7k.", True),
        ("Chosen for A1XQ7KZ by us", False),
        ("You loved 4711 like no other", True),
        ("You loved 1984 like no other", False),
        ("You loved part 42 most", False),
        ("As user 42 said, part one is best", True),
        ("As user #42 said", True),
        ("User id: 1984", True),
        # Written together with a marker, or with underscores.
        ("As User_4711 said", True),
        ("As user4711 said", True),
        ("For u4711 and friends", True),
        ("For userA1XQ7K", True),
        ("For UserIdA1XQ7K", True),
        ("For _A1XQ7K_, with love", True),
        ("As user_42 said", True),
        ("As user1984 said", True),
        ("Reviewer1984 agrees", True),
        # A title, a year, a volume, a word: no marker is meant.
        ("As good as U42 or U1984", False),
        ("Vol. 42 of 1984, as usual", False),
        ("The users of 1984 and their idea42", False),
        ("part_42 of 1984_", False),
        ("Ordered for jo-ann@home today", True),
        ("Ordered for Jo, Ann and at home", False),
        ("", False),
    ],
)
def test_an_id_leaks_only_where_it_can_be_told_from_a_number(text, leaked):
    ids = user_ids(["A1XQ7K", "4711", "1984", "42", "jo-ann@home"], ["Nineteen (1984)", "Jo"])
    assert leaks([text], ids).tolist() == [leaked]


@pytest.mark.parametrize(
    ("text", "leaked"),
    [
        ("If you like Independence Day (a.k.a. ID4), try it", False),
        ("As good as id4", False),
        # The id itself is a user's all the same.
        ("You are user id 4", True),
        ("Your customer ID: 4", True),
        ("As user4 said of ID4", True),
        ("For id7", True),
    ],
)
def test_a_word_of_a_title_is_no_leak(text, leaked):
    ids = user_ids(["4", "7"], ["Independence Day (a.k.a. ID4)", "Seven"])
    assert leaks([text], ids).tolist() == [leaked]


def test_ids_are_sorted_in_view_of_the_catalogue():
    ids = user_ids(["A1XQ7K", "1984", "42", "--"], ["Written in 1984"])
    assert ids.distinctive == {("a1xq7k",)}
    assert ids.marked == {("1984",), ("42",)}


@pytest.mark.parametrize(
    ("text", "leaked"),
    [
        ("As Ada Lindqvist would say", True),
        ("as ada LINDQVIST would say", True),
        ("Ada would like it, and so would Lindqvist", False),
        ("Customer Grace loved it", True),
        ("Full of grace and wit", False),
        ("For every Kindle Customer", False),
        ("By Jane Austen", False),
    ],
)
def test_a_name_leaks_where_it_tells_somebody_apart(text, leaked):
    names = ["Ada Lindqvist", "Grace", "Kindle Customer", "Kindle customer", "Jane Austen", "--"]
    found = user_names(names, ["Emma, by Jane Austen"])
    assert found.distinctive == {("ada", "lindqvist")}
    assert leaks([text], found).tolist() == [leaked]


def test_copied_words_count_unless_they_are_a_title():
    source = "the long and winding road to the far northern sea"
    texts = [
        "Fans say: the long and winding road, indeed",
        "the long road and winding paths to it",
        "Try A Short History of Nearly Everything next",
    ]
    descriptions = [source, "a short history of nearly everything is a book"]
    titles = ["A Short History of Nearly Everything"]
    assert copies(texts, descriptions, titles, 5).tolist() == [True, False, False]
    assert copies(texts, descriptions, titles, 6).tolist() == [False, False, False]
    assert copies(texts, iter(descriptions), titles, 5).tolist() == [True, False, False]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 5))
def test_ngrams_are_the_runs_of_the_text(letters, n):
    text = tuple(letters)
    joined = "".join(letters)
    assert all("".join(run) in joined and len(run) == n for run in ngrams(text, n))
    assert len(ngrams(text, n)) <= max(0, len(text) - n + 1)


def write_reviews(path, texts, splits=None):
    pl.DataFrame(
        {"split": splits or ["train"] * len(texts), "text": texts},
        schema={"split": pl.String, "text": pl.String},
    ).write_parquet(path)
    return path


# What words are made of, what parts them, and what changes as it is put in lower case.
LETTERS = st.text("aAbB1_ .-'\n\u0130\u212a\u03a3\u03c2\u0301\u00b2\u2167\u4e09", max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(LETTERS, max_size=7), st.lists(LETTERS, max_size=7), st.integers(1, 3))
def test_the_reviews_that_are_read_hold_all_that_occurs(tmp_path, monkeypatch, written, had, n):
    """Against reading all of them, in blocks of three."""
    monkeypatch.setattr(inputs, "BLOCK", 3)
    path = write_reviews(tmp_path / "reviews.parquet", had)
    phrases = phrases_of(written, n)
    read = list(train_reviews(path, phrases))
    assert occurring(phrases, read) == occurring(phrases, had)
    assert read == [text for text in had if occurring(phrases, [text])]


def test_only_reviews_of_the_train_split_are_read(tmp_path):
    path = write_reviews(
        tmp_path / "reviews.parquet",
        ["A calm sea", "a CALM-sea!", "calm"],
        ["test", "train", "train"],
    )
    assert list(train_reviews(path, {("calm", "sea")})) == ["a CALM-sea!"]
    assert list(train_reviews(path, set())) == []


def test_reviews_are_searched_by_the_same_letters():
    """Of all characters that Python's Unicode tables know."""
    known = [char for char in map(chr, range(0x110000)) if unicodedata.category(char)[0] != "C"]
    column = pl.Series(known)
    parts = column.str.contains(inputs.NO_WORD)
    assert parts.to_list() == [words(char) == () for char in known]
    assert column.str.to_lowercase().to_list() == [char.lower() for char in known]


@given(st.text(string.printable))
def test_words_ignore_case_and_punctuation(text):
    assert words(f"({text}!)") == words(text.upper())


def test_upper_bound_by_hand():
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_bound(0, 1) == pytest.approx(0.95)
    assert upper_bound(5, 5) == 1


@given(st.integers(1, 200), st.data())
def test_upper_bound_is_where_so_few_events_have_five_percent(samples, data):
    events = data.draw(st.integers(0, samples - 1))
    bound = upper_bound(events, samples)
    assert binom.cdf(events, samples, bound) == pytest.approx(0.05, abs=1e-6)
    assert bound > events / samples


def test_many_ids_do_not_slow_a_text_down():
    ids = user_ids([f"R{i:07d}" for i in range(50_000)], [])
    marks = leaks(["a harmless text"] * 300 + ["for R0000007"], ids)
    assert np.flatnonzero(marks).tolist() == [300]
