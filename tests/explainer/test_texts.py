"""Templated explanations are whole sentences that say only what the metadata says."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.prompts import Item
from shielded_recrl.explainer.texts import CLOSING, FIELD, facts, load_styles, write

# No template contains one of these words.
TITLES = [f"Xq{letter}vz" for letter in "abcdefghij"]
CATEGORIES = ["Zorbing", "Quilling", "Bonsai", "Falconry"]
item_of = st.builds(
    lambda title, categories: Item(title, tuple(categories), ""),
    st.sampled_from(TITLES),
    st.lists(st.sampled_from(CATEGORIES), unique=True, max_size=3),
)


@pytest.fixture(scope="module")
def styles(templates):
    return load_styles(templates / "explanations.yaml")


@given(item=item_of, history=st.lists(item_of, max_size=5), seed=st.integers(0, 2**32))
def test_a_text_names_only_what_the_metadata_supports(styles, item, history, seed):
    _, text = write(styles, item, history, random.Random(seed))
    liked = [other for other in history if other.title in text]
    for title in TITLES:
        assert title not in text or title == item.title or title in [o.title for o in liked]
    for category in (c for c in CATEGORIES if c in text):
        assert category in item.categories
        if any(other.title != item.title for other in liked):
            assert any(category in other.categories for other in liked)


@pytest.mark.parametrize(("title", "category"), [("Dune", "Drama"), ("The Old Road", "Road Trip")])
def test_a_text_is_one_or_two_whole_sentences_of_8_to_26_words(styles, title, category):
    item, liked = (Item(name, (category,), "") for name in (title, title.upper()))
    texts = [write(styles, item, [liked], random.Random(seed))[1] for seed in range(2000)]
    assert texts == [write(styles, item, [liked], random.Random(seed))[1] for seed in range(2000)]
    assert all(text.endswith(".") and not FIELD.search(text) for text in texts)
    assert {text.count(".") for text in texts} == {1, 2}
    words = [len(text.split()) for text in texts]
    assert min(words) >= 8
    assert max(words) <= 26


def test_the_mixture_follows_the_weights(styles):
    item = Item("Xqavz", ("Bonsai",), "")
    rng = random.Random(1)
    draws = 4000
    drawn = Counter(write(styles, item, [item], rng)[0] for _ in range(draws))
    total = sum(style.weight for name, style in styles.items() if name != CLOSING)
    for name, style in styles.items():
        if name != CLOSING:
            assert drawn[name] / draws == pytest.approx(style.weight / total, abs=0.03)
    assert 0.4 <= (drawn["generic"] + drawn["item"]) / draws <= 0.6


def test_without_categories_and_history_only_the_title_is_named(styles):
    rng = random.Random(2)
    item = Item("Item 917", (), "")
    assert facts(item, []) == [{"title": "Item 917"}]
    drawn = {write(styles, item, [], rng)[0] for _ in range(300)}
    assert drawn == {"generic", "item"}


def test_facts_pair_each_category_with_each_liked_title():
    item = Item("A", ("x", "y"), "")
    assert facts(item, [Item("B", ("y",), ""), Item("C", (), "")]) == [
        {"title": "A", "category": "x", "liked": "B"},
        {"title": "A", "category": "x", "liked": "C"},
        {"title": "A", "category": "y", "liked": "B", "shared": "y"},
        {"title": "A", "category": "y", "liked": "C"},
    ]


def test_a_title_with_braces_is_not_filled_again(styles):
    item = Item("{liked} {shared}", ("c",), "")
    rng = random.Random(3)
    texts = [write(styles, item, [Item("B", ("c",), "")], rng)[1] for _ in range(200)]
    assert any("{liked} {shared}" in text for text in texts)
    assert not any("B c" in text for text in texts)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("generic: [", "not valid YAML"),
        ("generic: {weight: 1}", "needs a `weight` and a list"),
        ("generic: {weight: 1, sentences: [No stop]}", "full stop"),
        ("generic: {weight: 1, sentences: ['{price}.']}", "nothing fills ['price']"),
        ("generic: {weight: 1, sentences: [Good.]}", "no key `closing`"),
        (
            "item: {weight: 1, sentences: ['{title}.']}\nclosing: {weight: 0, sentences: [Ok.]}",
            "without fields",
        ),
    ],
)
def test_bad_templates_are_one_clear_line(tmp_path, document, message):
    path = tmp_path / "explanations.yaml"
    path.write_text(document)
    with pytest.raises(UserError) as caught:
        load_styles(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
