"""Answers as text and JSON: pure functions on answers written by hand."""

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.explain.answers import Answer, Claim, Past, Person, Recommendation, Thing, moves
from shielded_recrl.explain.render import (
    Word,
    as_json,
    cells,
    comparison,
    document,
    explanation,
    mark,
    terminal,
    wrap,
)

ESCAPE = re.compile(r"\x1b\[\d+m")


def thing(item, title=None):
    return Thing(item, f"s{item}", title or f"Title {item}", ("Crime", "War"))


def recommendation(position, item, text="Try it.", claims=(), **changes):
    values = {"score": 3.0, "ranker_score": 2.5, "lm_score": 0.5, "in_test": False, "ended": True}
    return Recommendation(
        position=position,
        thing=changes.pop("thing", thing(item)),
        explanation=text,
        claims=tuple(claims),
        **values | changes,
    )


def answer(*recommendations, variant="shielded", **changes):
    values = {
        **{"dataset": "books", "synthetic": True, "sequential": True, "variant": variant},
        **{"seed": 5, "shield": "nullspace", "gamma": 0.5, "temperature": 0.7, "top_p": 0.9},
        "person": Person(42, "A42", "heldout", 3),
        "history": (Past(thing(7), False), Past(thing(8), True)),
    }
    return Answer(**values | changes, recommendations=tuple(recommendations))


SAID = "Heat beats May."
HEAT, MAY = Claim("Heat", 0, 4, True), Claim("May", 11, 14, False)
FULL = recommendation(1, 3, SAID, (HEAT, MAY), in_test=True, lm_score=-0.25, score=2.25)


def test_the_text_of_one_answer():
    assert terminal(answer(FULL), width=80) == "\n".join(
        [
            "User 42 (source id A42), a held-out user of books (synthetic data)",
            "",
            "History as the prompt names it, oldest first; 1 more before these",
            "   Title 8 (Crime, War)",
            "",
            "shielded, seed 5, shield nullspace",
            "",
            " 1. Title 3 (Crime, War)",
            "   2.250 = 2.500 ranker - 0.250 language model · in the test split",
            "   Heat✓ beats May✗.",
            "",
            "✓ a claim that the metadata of item and history supports, ✗ one that it does",
            "not; other words are not checked.",
            "Score = ranker + language model, which has weight 0.5. Texts are sampled at",
            "temperature 0.7, top_p 0.9.",
        ]
    )


def test_colours_add_nothing_but_colours():
    sides = comparison(*[answer(FULL)] * 2), comparison(*[answer(FULL)] * 2, colour=True)
    assert ESCAPE.sub("", sides[1]).split() == sides[0].split()
    plain, colourful = (terminal(answer(FULL), colour=colour) for colour in (False, True))
    assert "\x1b" not in plain
    assert "   \x1b[32mHeat✓\x1b[0m beats \x1b[31mMay✗\x1b[0m.\n" in colourful
    assert ESCAPE.sub("", colourful) == plain


def test_an_unordered_dataset_and_an_empty_list_are_said():
    text = terminal(answer(sequential=False, synthetic=False))
    assert "of books (no order)" in text
    assert "in no order" in text
    assert "Nothing is left to recommend" in text


def test_what_a_text_lacks_is_said():
    assert [word.text for word in explanation(recommendation(1, 1, ""))] == [
        "(an",
        "empty",
        "text)",
    ]
    words = explanation(recommendation(1, 1, "It is", ended=False))
    assert " ".join(word.text for word in words) == "It is (cut off)"


def test_no_escape_sequence_of_data_reaches_the_terminal():
    hostile = "\x1b[2Jgone\x07 \u202eback"
    one = recommendation(1, 1, hostile, thing=Thing(1, "s", hostile, (hostile,)))
    person = Person(1, hostile, "train", 1)
    for text in (
        terminal(answer(one, person=person)),
        comparison(*[answer(one, person=person)] * 2),
    ):
        assert all(letter.isprintable() or letter == "\n" for letter in text)
        assert "�[2Jgone� �back" in text


def test_a_long_title_is_cut():
    one = recommendation(1, 1, thing=thing(1, "x" * 10_000))
    assert "x" * 59 + "…" in terminal(answer(one))
    assert "x" * 60 not in terminal(answer(one))


def test_moves_are_places_gained():
    left = answer(*(recommendation(p, i) for p, i in enumerate((1, 2, 3, 4), 1)))
    right = answer(*(recommendation(p, i) for p, i in enumerate((1, 4, 2, 9), 1)))
    assert moves(left, right) == [0, 2, -1, None]
    assert [mark(move).text for move in moves(left, right)] == ["=", "▲2", "▼1", "new"]


def test_two_answers_side_by_side():
    left = answer(recommendation(1, 1, "One."), recommendation(2, 2, "Two."))
    right = answer(recommendation(1, 2, SAID, (HEAT, MAY)), variant="no_proj", shield="none")
    # 67 cells are two columns of 31: what is longer goes on in the next line.
    columns = [
        ("shielded, seed 5, shield", "no_proj, seed 5, shield none"),
        ("nullspace", ""),
        ("", ""),
        ("1. Title 1", "1. Title 2"),
        ("3.000", "3.000 ▲1"),
        ("One.", "Heat✓ beats May✗."),
        ("", ""),
        ("2. Title 2", ""),
        ("3.000", ""),
        ("Two.", ""),
    ]
    expected = [f"{one:<31}  │  {other}".rstrip() for one, other in columns]
    lines = comparison(left, right, width=67).splitlines()
    assert lines[5:16] == [*expected, ""]
    assert "The two lists differ." in lines
    assert "The two lists are the same." in comparison(left, left)


def test_weights_of_both_runs_are_told_where_they_differ():
    one, other = answer(FULL), answer(FULL, gamma=0.123456)
    assert "which has weight 0.5." in comparison(one, one)
    assert "which has weight 0.5 and 0.123." in comparison(one, other)


def test_the_json_holds_nothing_that_a_terminal_obeys():
    """C1 controls and marks of direction are printable to `json`, and no text to a terminal."""
    title = "\x9b2J\u202eevil\u2066 \x1b]0;x\x07 Amélie"
    hostile = dataclasses.replace(FULL, thing=dataclasses.replace(FULL.thing, title=title))
    text = as_json([answer(hostile)])
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    assert json.loads(text)["runs"][0]["recommendations"][0]["title"] == title


def test_the_json_document():
    other = answer(recommendation(1, 9), FULL, variant="no_proj")
    got = json.loads(as_json([answer(FULL), other]))
    assert got == document([answer(FULL), other])
    assert got["schema"] == 1
    assert got["dataset"] == {"name": "books", "synthetic": True, "sequential": True}
    assert got["user"] == {"user": 42, "source_id": "A42", "role": "heldout"}
    about = {"title": "Title 8", "categories": ["Crime", "War"]}
    assert got["history"][1] == {"item": 8, "source_id": "s8", **about, "named": True}
    first, second = got["runs"]
    (one,) = first.pop("recommendations")
    assert first == {
        **{"variant": "shielded", "seed": 5, "shield": "nullspace", "gamma": 0.5},
        "sampling": {"temperature": 0.7, "top_p": 0.9},
    }
    assert one == {
        **{"position": 1, "moved": 0, "item": 3, "source_id": "s3", "title": "Title 3"},
        **{"categories": ["Crime", "War"], "score": 2.25, "ranker_score": 2.5, "lm_score": -0.25},
        **{"in_test": True, "explanation": SAID, "ended": True},
        "claims": [
            {"text": "Heat", "start": 0, "end": 4, "supported": True},
            {"text": "May", "start": 11, "end": 14, "supported": False},
        ],
    }
    assert [row["moved"] for row in second["recommendations"]] == [None, 0]


@pytest.mark.parametrize(("text", "width"), [("ab", 2), ("龍龍", 4), ("e\u0301", 1), ("", 0)])
def test_cells(text, width):
    assert cells(text) == width


@given(
    st.lists(
        st.tuples(st.text(st.characters(categories=["L", "N", "P"]), min_size=1), st.booleans()),
        max_size=20,
    ),
    st.integers(2, 30),
)
def test_wrapped_lines_fit_and_lose_nothing(words, width):
    given_words = [Word(text, glued=glued) for text, glued in words]
    lines = wrap(given_words, width)
    for line in lines:
        size = sum(cells(w.text) + (i > 0 and not w.glued) for i, w in enumerate(line))
        assert size <= width
    kept = "".join(word.text for line in lines for word in line)
    assert kept == "".join(text for text, _ in words)


@given(st.text(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_the_pieces_of_a_text_are_the_text(text, cuts):
    ends = sorted({min(cut, len(text)) for cut in cuts})
    claims = [
        Claim(text[start:end], start, end, True)
        for start, end in zip(ends[::2], ends[1::2], strict=False)
    ]
    pieces = list(recommendation(1, 1, text, claims).pieces())
    assert "".join(piece for piece, _ in pieces) == text
    assert [claim for _, claim in pieces if claim] == claims
