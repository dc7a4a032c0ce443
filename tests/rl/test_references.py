"""References of a (user, item): the user's own review, else others' from train, else none."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.data.reviews import SCHEMA
from shielded_recrl.errors import UserError
from shielded_recrl.rl.evaluation.references import (
    MOST,
    References,
    check_reviews,
    count_reviews,
    load_references,
    pair_references,
)

ROWS = [
    (1, 7, "test", "mine"),
    (2, 7, "train", "two"),
    (3, 7, "train", "three"),
    (4, 7, "valid", "four"),
    (5, 7, "test", "five"),
    (2, 8, "test", "held out"),
    (2, 9, "train", "nine"),
]


def table(rows):
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "reviews.parquet"
    table(ROWS).write_parquet(file)
    return file


def test_the_own_review_comes_first(path):
    assert load_references(path, [(1, 7), (2, 8)], 0) == [
        References(("mine",), True),
        References(("held out",), True),
    ]


def test_others_speak_from_train_alone(path):
    (found,) = load_references(path, [(9, 7)], 0)
    assert (set(found.texts), found.own) == ({"two", "three"}, False)
    # Item 8 has no review in train, item 6 none at all.
    assert load_references(path, [(9, 8), (9, 6)], 0) == [None, None]


def test_at_most_five_drawn_with_a_seed():
    many = table([(user, 1, "train", f"text {user}") for user in range(1, 21)])
    pairs = [(50, 1), (51, 1)]
    first, second = pair_references(many, pairs, 3)
    assert len(set(first.texts)) == len(first.texts) == MOST == 5
    assert [first, second] == pair_references(many, pairs, 3)
    assert first != second
    assert first != pair_references(many, pairs, 4)[0]
    # Neither other pairs nor the order of the table change the draw.
    assert pair_references(many.reverse(), pairs[1:], 3) == [second]
    drawn = {text for seed in range(40) for text in pair_references(many, pairs, seed)[0].texts}
    assert len(drawn) == 20


@given(
    st.lists(
        st.tuples(
            st.integers(1, 5), st.integers(1, 3), st.sampled_from(["train", "valid", "test"])
        ),
        unique_by=lambda row: row[:2],
    ),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_what_a_reference_may_be(rows, user, item):
    texts = [(u, i, split, f"{u} on {i}") for u, i, split in rows]
    (found,) = pair_references(table(texts), [(user, item)], 0, most=2)
    own = [text for u, i, _, text in texts if (u, i) == (user, item)]
    others = {text for u, i, split, text in texts if i == item and u != user and split == "train"}
    if own:
        assert found == References(tuple(own), True)
    elif others:
        assert set(found.texts) <= others
        assert len(found.texts) == min(2, len(others))
    else:
        assert found is None


def test_what_rouge_cannot_read_is_no_reference():
    rows = [(1, 7, "test", "!!!"), (2, 7, "train", "très bien"), (3, 7, "train", "とても良い")]
    assert pair_references(table(rows), [(1, 7)], 0) == [References(("très bien",), False)]
    assert pair_references(table(rows[2:]), [(1, 7)], 0) == [None]


def test_rows_are_counted(path):
    assert count_reviews(path) == len(ROWS)


@pytest.mark.parametrize("content", [None, b"no parquet", "other columns"])
def test_unreadable_files(tmp_path, content):
    path = tmp_path / "reviews.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        pl.DataFrame({"item": [1], "review": ["x"]}).write_parquet(path)
    for read in (lambda path: load_references(path, [(1, 1)], 0), check_reviews):
        with pytest.raises(UserError, match=r"reviews\.parquet: no table with the columns user, "):
            read(path)


def test_a_file_whose_texts_are_damaged_is_found_out(tmp_path):
    """The index at the end of the file is whole, and so is the number of rows."""
    path = tmp_path / "reviews.parquet"
    rows = [(n, 1, "train", f"text {n * 7919}") for n in range(1, 2000)]
    table(rows).write_parquet(path, compression="zstd")
    check_reviews(path)
    content = bytearray(path.read_bytes())
    start, end = len(content) // 10, len(content) * 8 // 10
    content[start:end] = b"\xff" * (end - start)
    path.write_bytes(content)
    assert count_reviews(path) == len(rows)
    with pytest.raises(UserError, match="run `data prepare` again") as caught:
        check_reviews(path)
    assert "\n" not in str(caught.value)
