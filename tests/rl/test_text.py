"""Plain text measures against hand-made texts."""

import pytest

from shielded_recrl.rl.text import (
    distinct_share,
    echo_share,
    names,
    ngrams,
    words,
    written_as_names,
)

LONG = "The Lord of the Rings: The Fellowship of the Ring (2001)"


def test_words_are_lower_case_and_keep_apostrophes():
    assert words("It's Dragon_Song, vol. 2!") == ["it's", "dragon", "song", "vol", "2"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("You may like It.", [False, False, False, True]),
        ("“May” is fun. (More is not.)", [False] * 6),
        ("Now: Heat! Heat, Heat? heat", [False, False, False, True, False]),
        ("7 Heat 8", [False, True, False]),
        ("", []),
    ],
)
def test_a_name_has_a_capital_that_no_sentence_asks_for(text, named):
    assert written_as_names(text) == named


def test_names_needs_the_whole_phrase_in_a_row():
    tokens = words("You liked Runic Circuit, a game.")
    assert names(tokens, "runic circuit")
    assert not names(tokens, "Circuit Runic")
    assert not names(tokens, "")


def test_distinct_share_by_hand():
    assert distinct_share(words("a b a b"), 2) == pytest.approx(2 / 3)
    assert distinct_share([], 2) == 1.0
    assert ngrams(["a"], 2) == []


def test_echo_counts_rows_of_names_and_never_one_name():
    assert echo_share(words(f"You may enjoy {LONG} tonight."), [LONG, "Heat"], 5) == 0.0
    row = words("Heat Ran Casino Heist Night")
    assert echo_share(row, ["Heat", "Ran Casino", "Heist Night"], 5) == 1.0
