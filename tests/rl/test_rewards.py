"""Rewards: what a policy could try instead of explaining earns less than explaining."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explanation_texts import CATALOGUE, HONEST, REQUEST, TRICKS, VOCABULARY
from shielded_recrl.explainer.prompts import Item
from shielded_recrl.rl.rewards import coherence, composite, length, relevance
from shielded_recrl.rl.settings import RewardSettings

COMPONENTS = ("length", "relevance", "coherence")
# Random text, and text made of the very words rewards look for.
TEXT = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(
            [*VOCABULARY, *(i.title for i in CATALOGUE), "you", "the", ".", "Ａé", "👍"]
        ),
        max_size=40,
    ).map(" ".join),
)


def total(text: str, request=REQUEST) -> float:
    return float(composite([text], [request], VOCABULARY, RewardSettings())["total"][0])


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_earns_less_than_an_honest_explanation(trick):
    assert total(TRICKS[trick]) < total(HONEST) - 0.1


def test_an_honest_explanation_has_every_component():
    """15 words, title, category and link named, one whole sentence."""
    parts = composite([HONEST], [REQUEST], VOCABULARY, RewardSettings())
    assert {name: float(values[0]) for name, values in parts.items()} == pytest.approx(
        {"length": 1.0, "relevance": 1.0, "coherence": 1.0, "total": 1.0}
    )


def test_an_empty_text_earns_nothing():
    assert total("") == total(" \n") == total("?!") == 0.0


@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_components_lie_in_the_unit_interval(text):
    parts = composite([text], [REQUEST], VOCABULARY, RewardSettings())
    assert all(0 <= parts[name][0] <= 1 for name in COMPONENTS)
    assert parts["relevance"][0] <= parts["coherence"][0]


def test_the_total_is_the_weighted_sum_row_by_row():
    weights = RewardSettings(length=0.5, relevance=2.0, coherence=0.25, target_words=9)
    texts = [HONEST, *TRICKS.values()]
    parts = composite(texts, [REQUEST] * len(texts), VOCABULARY, weights)
    expected = 0.5 * parts["length"] + 2 * parts["relevance"] + 0.25 * parts["coherence"]
    np.testing.assert_allclose(parts["total"], expected)
    alone = [composite([text], [REQUEST], VOCABULARY, weights)["total"][0] for text in texts]
    np.testing.assert_array_equal(parts["total"], alone)


def test_responses_and_requests_come_in_pairs():
    with pytest.raises(ValueError, match="zip"):
        composite([HONEST], [REQUEST] * 2, VOCABULARY, RewardSettings())
    assert composite([], [], VOCABULARY, RewardSettings())["total"].shape == (0,)


def test_length_rises_stays_and_falls():
    got = {count: length("word " * count, 10) for count in (0, 5, 10, 15, 20, 30, 40, 100)}
    assert got == pytest.approx({0: 0, 5: 0.5, 10: 1, 15: 1, 20: 1, 30: 0.5, 40: 0, 100: 0})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It has Fantasy in it.", 1 / 3),
        ("It has Cooking in it.", 0),
        ("It has Fantasy and Cooking in it.", 1 / 6),  # half of what it names is supported
        ("Runic Circuit is good.", 1 / 3),
        ("Runic nights are good.", 1 / 6),  # half of the title
        ("After Rustic Wedding.", 1 / 6),  # of the history, but shares no category
        ("After Neon Circuit.", 1 / 6 + 1 / 3),  # shares one, and a word of the title
        ("After Desert Cookbook.", 0),  # not of the history
        ("runic circuit: FANTASY, as in viking chronicle 2!", 1),
    ],
)
def test_relevance_by_hand(text, expected):
    assert relevance(text, REQUEST, VOCABULARY) == pytest.approx(expected)


def test_an_unsupported_category_lowers_relevance():
    wrong = HONEST.replace("Science Fiction", "Science Fiction and Cooking")
    assert relevance(wrong, REQUEST, VOCABULARY) == pytest.approx(0.5)
    assert relevance(HONEST, REQUEST, VOCABULARY) == 1.0


def test_a_category_within_a_title_is_a_name_and_not_a_claim():
    about = Item("Cooking Alone", ("Travel",), "")
    request = dataclasses.replace(REQUEST, about=about, history=())
    vocabulary = frozenset({"Cooking", "Travel"})
    assert relevance("You may like Cooking Alone.", request, vocabulary) == pytest.approx(1 / 3)


def test_relevance_without_metadata():
    request = dataclasses.replace(REQUEST, about=Item("", (), ""), history=())
    assert relevance(HONEST, request, frozenset()) == 0.0
    assert 0 <= total(HONEST, request) <= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("You may like this one.", 1.0),
        ("You may like this one", 0.5),  # does not end
        ("you you you you.", 1 / 3),  # one bigram out of three
        ("Wonderful dragon castle quest.", 0.0),  # no function word
        # One function word in ten: half of the share prose has.
        ("Wonderful dragon castle quest brings old magic into dark woods.", 0.5),
    ],
)
def test_coherence_by_hand(text, expected):
    assert coherence(text, REQUEST) == pytest.approx(expected)


def test_echoed_words_count_against_coherence():
    """Of the 9 5-grams, the 3 within the 7 words taken from the history are copied."""
    echo = "You have seen all of Rustic Wedding Neon Circuit Viking Chronicle 2 so."
    assert coherence(echo, REQUEST) == pytest.approx(1 - 3 / 9)


def test_naming_one_title_is_no_echo():
    assert coherence(HONEST, REQUEST) == 1.0
