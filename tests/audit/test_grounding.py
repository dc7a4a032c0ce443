"""Whether texts name their own item, and which texts are given to several."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.audit.grounding import grounding, item_phrases, repeated
from shielded_recrl.rl.text import names, words

CATALOGUE = {
    1: ("Dragon Song", ["Fantasy"]),
    2: ("The Long Sea", ["Travel", "History"]),
    3: ("It", ["Horror", "Fantasy"]),
    4: ("¡!", []),
}
SENTENCES = (
    "Dragon Song is fun.",
    "Fantasy at its best!",
    "The long sea, a travel book",
    "It is a song of dragon lore",
    "History or horror",
    "",
)


def phrases(items):
    return [item_phrases(*CATALOGUE[item]) for item in items]


def test_by_hand():
    items = [1, 2, 3, 1, 3, 2]
    told = grounding(
        ["Dragon Song, for you", "More fantasy", "Plain Fantasy", "A travel book", "It", "Travel"],
        np.array([7, 7, 7, 7, 8, 8]),
        np.array(items),
        phrases(items),
    )
    np.testing.assert_array_equal(told.paired, [1, 0, 1, 0, 1, 1])
    # The first fits neither 2 nor 3. The second fits 1, 3 and 1. The third fits 1 and 1, not 2. The
    # last two are of another user, and are dealt to each other's items alone.
    np.testing.assert_allclose(told.shuffled, [0, 1, 2 / 3, 1 / 2, 0, 0])


def test_what_follows_the_taste_of_its_user_alone_is_not_grounded():
    """Each user likes one category and is served two items of it; texts name it, not the items."""
    users = np.repeat(np.arange(10), 2)
    liked = [("Fantasy", "Travel")[user % 2] for user in users]
    own = [item_phrases(f"Story {row}", [liked[row]]) for row in range(20)]
    told = grounding([f"More {one} for you" for one in liked], users, np.arange(20), own)
    np.testing.assert_array_equal(told.paired, 1)
    np.testing.assert_array_equal(told.shuffled, 1)


def test_an_item_without_a_word_is_named_by_nothing():
    assert item_phrases("¡!", []) == frozenset()
    told = grounding(["¡!", "a"], np.array([1, 1]), np.array([4, 1]), phrases([4, 1]))
    assert told.paired[0] == 0


def test_texts_for_one_item_cannot_be_dealt():
    with pytest.raises(ValueError, match="of user 1 cannot"):
        grounding(["a", "b"], np.array([1, 1]), np.array([1, 1]), phrases([1, 1]))
    with pytest.raises(ValueError, match="of user 2 cannot"):
        grounding(["a", "b", "c"], np.array([1, 1, 2]), np.array([1, 2, 3]), phrases([1, 2, 3]))


requests = st.lists(
    st.tuples(st.sampled_from(SENTENCES), st.sampled_from([1, 2, 3])), min_size=2, max_size=8
).filter(lambda rows: len({item for _, item in rows}) > 1)


@given(requests)
def test_shuffled_is_the_mean_over_a_users_requests_for_other_items(rows):
    texts, items = zip(*rows, strict=True)
    told = grounding(texts, np.ones(len(items), dtype=int), np.array(items), phrases(items))

    def fits(text, item):
        title, categories = CATALOGUE[item]
        return any(names(words(text), phrase) for phrase in (title, *categories))

    for place, (text, own) in enumerate(rows):
        others = [fits(text, item) for item in items if item != own]
        assert told.paired[place] == fits(text, own)
        assert told.shuffled[place] == pytest.approx(np.mean(others))


@given(st.permutations([1, 2, 3, 1, 2, 3]), st.sampled_from(SENTENCES))
def test_one_sentence_for_all_fits_its_own_item_no_better(items, sentence):
    told = grounding([sentence] * 6, np.ones(6, dtype=int), np.array(items), phrases(items))
    assert (told.paired - told.shuffled).mean() == pytest.approx(0)


def test_repeated_texts_are_those_another_item_was_given():
    texts = ["Fun for all.", "fun for all", "Only this", "Only this", "", "!"]
    items = np.array([1, 2, 3, 3, 1, 2])
    assert repeated(texts, items).tolist() == [True, True, False, False, True, True]
