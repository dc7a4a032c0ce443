"""The second click simulator: formulas by hand, another form than the first, and no reward for tricks."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics.pairwise import cosine_similarity

from explanation_texts import CATALOGUE, HONEST, REQUEST, TRICKS, VOCABULARY
from shielded_recrl.explainer.prompts import Item, PromptBuilder, Request
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.ranker.data import Splits
from shielded_recrl.rl.evaluation import simulator
from shielded_recrl.rl.evaluation.base import click_draws, click_rates
from shielded_recrl.rl.evaluation.copying import own_share, prompt_words
from shielded_recrl.rl.evaluation.examination import (
    ABOUT,
    INTERCEPT,
    LENGTH_SCALE,
    OWN_WORDS,
    SPREAD,
    STREAM,
    UNINFORMED,
    VARIED,
    ExaminationSimulator,
    Reading,
    Vocabulary,
    content_relevance,
    effective_words,
    examination,
    inverse_document_frequencies,
    read,
    user_patience,
)
from shielded_recrl.rl.settings import EvaluationSettings
from tiny_world import TEMPLATES

KNOWN = Vocabulary(CATALOGUE)
PROMPTS = PromptBuilder(None, TEMPLATES, CATALOGUE, PromptSettings())
PROMPT = prompt_words(REQUEST, PROMPTS)


def reading(text: str, request: Request = REQUEST) -> Reading:
    return read(text, request, KNOWN, prompt_words(request, PROMPTS))


def quality(text: str) -> float:
    return reading(text).quality


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_has_less_quality_than_an_honest_explanation(trick):
    assert quality(TRICKS[trick]) < 0.8 * quality(HONEST)


BOTTOM = [
    "empty",
    "punctuation",
    "prompt echo",
    "prompt echo that ends well",
    "names of the prompt",
    "keyword stuffing",
    "title twenty times",
]


@pytest.mark.parametrize("trick", BOTTOM)
def test_empty_texts_echoes_and_lists_are_at_the_bottom(trick):
    assert quality(TRICKS[trick]) == 0.0


def test_the_names_of_another_item_are_at_the_bottom():
    assert quality("You may enjoy Desert Cookbook.") == 0.0
    assert 0 < quality("You may enjoy it a lot.") < quality("You may enjoy Runic Circuit.")


def test_the_prompt_as_the_model_reads_it():
    first = "liked rustic wedding neon circuit viking chronicle 2"
    assert " ".join(PROMPT) == f"{first} next runic circuit fantasy science fiction why"


def idf(count: int) -> float:
    return math.log(6 / (1 + count))


def test_an_honest_text_by_hand():
    """16 words, `you` and `circuit` twice: 14 distinct ones. Ten words of its own.

    Words of the item: runic in 1 of 5 items; circuit, fantasy, science, fiction in 2 each. All are
    said but fantasy. Of the history, neon is said of "Neon Circuit", as circuit is the item's.
    """
    got = reading(HONEST)
    assert got.length == pytest.approx(math.tanh(16 / LENGTH_SCALE))
    assert got.varied == 1.0
    assert got.fluent == 1.0
    assert got.precision == 1.0
    about = (idf(1) + 3 * idf(2)) / (idf(1) + 4 * idf(2))
    assert got.evidence == pytest.approx((ABOUT * about + 1) / (ABOUT + 1))
    assert got.quality == pytest.approx(
        got.length * (UNINFORMED + (1 - UNINFORMED) * got.evidence), rel=1e-12
    )


def test_names_of_others_by_hand():
    """Written as names: neon, circuit, home, cooking, runic. Cooking is of the cookbook alone."""
    got = reading(HONEST.replace("Science Fiction", "Home Cooking"))
    right = idf(1) + idf(2) + idf(1)
    assert got.precision == pytest.approx(right / (right + idf(1)))


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("Like Rustic Wedding it has Romance.", True),
        ("Like Neon Circuit it has Romance.", False),
        ("It has Romance.", False),
        ("It has romance.", True),
        ("Romance is all it has.", True),
        ("It has Fantasy.", True),
        ("It has Kindness.", True),
    ],
)
def test_a_category_of_the_history_holds_beside_its_title(text, holds):
    """A lower-case word, the first of a sentence and a word of no name are not written as names."""
    assert (reading(text).precision == 1.0) is holds


def test_the_description_is_evidence():
    about = Item("Runic Circuit", ("Fantasy",), "A tale of smugglers and storms.")
    catalogue = [CATALOGUE[0], about, *CATALOGUE[2:]]
    request = dataclasses.replace(REQUEST, about=about, history=())
    known = Vocabulary(catalogue)

    def evidence(text):
        return read(text, request, known, prompt_words(request, PROMPTS)).evidence

    total = known.weight({"runic", "circuit", "fantasy"})
    assert evidence("It is about smugglers.") == pytest.approx(idf(1) / total)
    assert evidence("Runic Circuit is a tale of smugglers and storms with Fantasy.") == 1.0
    assert evidence("Nothing of that.") == known.weight({"of"}) / total


def test_naming_one_book_of_a_series_is_not_naming_two():
    series = [Item("", (), ""), *(Item(f"Viking Chronicle {n}", (), "") for n in (1, 2, 3))]
    other = Item("Desert Cookbook", (), "")
    known = Vocabulary([*series, other])
    request = Request(1, 1, series[1], (series[2], series[3]), (), ())
    prompt = prompt_words(request, PROMPTS)
    alone = read("You may enjoy Viking Chronicle 1 as well.", request, known, prompt)
    both = read("You may enjoy Viking Chronicle 1 like Viking Chronicle 2.", request, known, prompt)
    assert alone.evidence == pytest.approx(ABOUT / (ABOUT + 1))
    assert both.evidence == 1.0


def test_own_words_by_hand():
    """`may`, `like` and `it` are not of the prompt; `liked rustic` stands there in this order."""
    assert own_share("you may like it".split(), REQUEST, PROMPT) == 1.0
    assert own_share("you liked rustic food".split(), REQUEST, PROMPT) == 0.5
    assert own_share("rustic you liked food".split(), REQUEST, PROMPT) == 1.0
    # A name of one word, and one of the history's that the prompt does not show.
    assert own_share("fantasy and history".split(), REQUEST, PROMPT) == pytest.approx(1 / 3)


def test_fluency_asks_for_a_share_of_own_words():
    text = "see Neon Circuit or Runic Circuit"
    assert reading(text).fluent == pytest.approx(2 / 6 / OWN_WORDS)
    assert reading(f"{text} some day").fluent == 1.0


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40))
def test_effective_words_are_those_of_scipy(tokens):
    counts = np.unique(tokens, return_counts=True)[1]
    assert effective_words(tokens) == pytest.approx(math.exp(stats.entropy(counts)))


def test_quality_falls_with_repetition():
    sentence = "You may enjoy Runic Circuit. "
    values = [reading(sentence * count) for count in (1, 2, 3, 10)]
    assert [one.varied for one in values] == pytest.approx(
        [1.0, 0.5 / VARIED, 1 / 3 / VARIED, 0.1 / VARIED]
    )
    # Said twice, it is longer, and has said no more.
    assert values[1].quality > values[2].quality > values[3].quality
    assert values[3].quality < values[0].quality


def test_quality_saturates_in_length():
    values = np.array([quality(" ".join(f"w{i}" for i in range(n))) for n in range(1, 60)])
    steps = np.diff(values)
    assert (steps > 0).all()
    assert (np.diff(steps[1:]) < 0).all()
    assert values[-1] == pytest.approx(UNINFORMED, abs=1e-3)


TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from([*VOCABULARY, *(i.title for i in CATALOGUE), "you", "and", "👍"]),
        max_size=30,
    ).map(" ".join),
)


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_every_part_is_a_share(text):
    got = reading(text)
    assert all(0 <= part <= 1 for part in got)
    assert 0 <= got.quality < 1


def test_the_two_simulators_judge_by_other_evidence():
    """Words and whole names: each finds a difference between texts that the other does not see."""
    index = simulator.ClaimIndex(CATALOGUE)

    def both(text):
        return simulator.judge(text, REQUEST, index, PROMPT).quality, quality(text)

    # Half of a title is half of its words, and no claim.
    none, half = both("This one has magic in it."), both("This one has runic magic in it.")
    assert half[0] - none[0] < 0.02
    assert half[1] > 1.5 * none[1]
    # A title of the history is the same claim whichever it is; here the first two words weigh all.
    plain = both("Because you liked Neon Circuit you may enjoy Runic Circuit.")
    other = both("Because you liked Runic Circuit you may enjoy Runic Circuit.")
    assert other[1] < plain[1]
    # The prompt, read back, is nothing to either.
    assert both(TRICKS["prompt echo"]) == (0.0, 0.0)


def splits(train: list[list[int]], valid: list[list[int]], n_items: int) -> Splits:
    return Splits.from_sequences(train, valid, [[] for _ in train], n_items)


def test_idf_is_that_of_sklearn():
    documents = [{"a", "b"}, {"a"}, {"a", "c"}, {"b", "a"}]
    counts = np.array([[term in document for term in "abc"] for document in documents])
    expected = TfidfTransformer(smooth_idf=True).fit(counts.astype(float)).idf_ - 1
    got = inverse_document_frequencies(documents)
    assert [got[term] for term in "abc"] == pytest.approx(expected.tolist())
    assert got["a"] == 0.0


def test_relevance_is_the_cosine_of_sklearn():
    """Categories alone: user 1 by three validation items, user 2, who has none, by train items."""
    rng = np.random.default_rng(5)
    names = np.array(["Crime", "Drama", "Travel", "War", "Sport"])
    has = rng.random((12, 5)) < 0.4
    items = [Item("", (), ""), *(Item("x", tuple(names[row]), "") for row in has)]
    world = splits([[1], [4, 5], [12]], [[1, 2, 3], [], [11]], 12)
    pairs = [(user, item) for user in (1, 2) for item in (6, 7, 8, 9)]
    weighted = has * (TfidfTransformer(smooth_idf=True).fit(has.astype(float)).idf_ - 1)
    liked = {1: weighted[[0, 1, 2]].sum(0), 2: weighted[[3, 4]].sum(0)}
    raw = np.array([cosine_similarity([weighted[i - 1]], [liked[u]])[0, 0] for u, i in pairs])
    expected = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(content_relevance(items, world, pairs), expected)


def test_other_users_do_not_speak():
    """The first simulator's relevance is theirs alone; this one's does not change with them."""
    items = [Item("", (), ""), Item("a", ("X",), ""), Item("b", ("X",), ""), Item("c", ("Y",), "")]
    pairs = [(1, 2), (1, 3)]
    alone = splits([[1], [3]], [[1], [3]], 3)
    crowd = splits([[1], [3], [1, 3], [1, 3]], [[1], [3], [], []], 3)
    np.testing.assert_array_equal(
        content_relevance(items, alone, pairs), content_relevance(items, crowd, pairs)
    )
    assert simulator.relevance(crowd, pairs)[1] > simulator.relevance(crowd, pairs)[0]
    assert content_relevance(items, crowd, pairs).tolist() == [1.0, -1.0]


def test_items_without_categories_are_equally_relevant():
    items = [Item("", (), ""), *(Item(name, (), "") for name in "abc")]
    assert content_relevance(items, splits([[1]], [[1]], 3), [(1, 2), (1, 3)]).tolist() == [0, 0]


def test_examination_by_hand():
    assert [examination(position, 0.6) for position in (1, 2, 3)] == pytest.approx([1, 0.6, 0.36])


def test_patience_is_beta():
    values = np.array([user_patience(user, 0.8, 7) for user in range(1, 2001)])
    expected = stats.beta(SPREAD * 0.8, SPREAD * 0.2)
    assert stats.kstest(values, expected.cdf).pvalue > 0.01
    assert user_patience(5, 0.8, 7) == values[4]
    assert user_patience(5, 0.8, 8) != values[4]
    assert user_patience(5, 1.0, 7) == 1.0


TRIPLES = [(user, item, position) for user in (1, 2, 3) for position, item in ((1, 1), (2, 5))]
WORLD = splits([[2], [3], [4]], [[3], [4], [2]], 5)
SETTINGS = EvaluationSettings(sessions=400, relevance_weight=0.5, quality_weight=0.8)


@pytest.fixture
def audience():
    return ExaminationSimulator(PROMPTS, WORLD, TRIPLES, SETTINGS, seed=4)


def test_click_probability_by_hand(audience):
    qualities = np.linspace(0, 0.9, 6)
    relevance = content_relevance(CATALOGUE, WORLD, [(u, i) for u, i, _ in TRIPLES])
    assert relevance.std() > 0
    patience = np.array([user_patience(u, 0.8, 4) if p == 2 else 1.0 for u, _, p in TRIPLES])
    for weight in (SETTINGS.quality_weight, 0.0, 2.0):
        expected = patience * stats.norm.cdf(INTERCEPT + 0.5 * relevance + weight * qualities)
        np.testing.assert_allclose(audience.probability(qualities, weight), expected)
    np.testing.assert_array_equal(
        audience.clicks(qualities).probability, audience.probability(qualities, 0.8)
    )


def test_a_better_text_never_loses_a_click(audience):
    """With common random numbers this holds click by click, not on average."""
    rates = [audience.clicks(np.full(6, q)).rate for q in (0.0, 0.3, 0.9)]
    assert (np.diff(rates, axis=0) >= 0).all()
    assert rates[2].sum() > rates[0].sum()
    got = audience.clicks(np.full(6, 0.3))
    np.testing.assert_array_equal(got.rate, click_rates(got.probability, audience.draws))


def test_draws_are_keyed_by_triple_and_are_no_draws_of_the_first(audience):
    other = ExaminationSimulator(PROMPTS, WORLD, TRIPLES[::-1], SETTINGS, seed=4)
    np.testing.assert_array_equal(audience.draws[::-1], other.draws)
    first = click_draws(TRIPLES, 400, 4)
    assert not np.isin(audience.draws, first).any()
    np.testing.assert_array_equal(audience.draws, click_draws(TRIPLES, 400, 4, STREAM))
    assert abs(np.corrcoef(audience.draws.ravel(), first.ravel())[0, 1]) < 0.08
