"""The first click simulator: common random numbers, formulas by hand, and nothing to be gained by tricks."""

import dataclasses
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explanation_texts import CATALOGUE, HONEST, REQUEST, TRICKS, VOCABULARY
from shielded_recrl.explainer.prompts import (
    Item,
    PromptBuilder,
    Request,
    request_text,
    short_title,
)
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.explainer.texts import load_styles, write
from shielded_recrl.provenance import import_closure
from shielded_recrl.ranker.data import Splits
from shielded_recrl.rl.evaluation.base import click_draws, click_rates, standardised
from shielded_recrl.rl.evaluation.copying import echo, prompt_words
from shielded_recrl.rl.evaluation.simulator import (
    LENGTH_SCALE,
    UNGROUNDED,
    ClaimIndex,
    ClaimsSimulator,
    click_probability,
    judge,
    relevance,
    user_bias,
)
from shielded_recrl.rl.settings import SimulatorSettings
from shielded_recrl.rl.text import words
from tiny_world import TEMPLATES

INDEX = ClaimIndex(CATALOGUE)
PROMPTS = PromptBuilder(None, TEMPLATES, CATALOGUE, PromptSettings())


def quality(text: str, request: Request, index: ClaimIndex) -> float:
    return judge(text, request, index, prompt_words(request, PROMPTS)).quality


RULES = Path(__file__).resolve().parents[2] / "rules"
EVALUATION = "shielded_recrl.rl.evaluation"
# Commands that measure what was trained; nothing is trained on what they write.
MEASURES = re.compile(r"shielded_recrl\.(rl\.(generate|evaluate)|(audit|report|explain)\b.*)")


def behind_rules() -> set[str]:
    """Modules whose code a rule names as its own."""
    texts = [path.read_text() for path in sorted(RULES.glob("*.smk"))]
    return {name for text in texts for name in re.findall(r'code_digest\("([\w.]+)"\)', text)}


def reached(module: str) -> set[str]:
    return {name for name in import_closure(module) if name.startswith(EVALUATION)}


def test_no_training_command_can_reach_the_held_out_evaluation():
    training = {name for name in behind_rules() if not MEASURES.fullmatch(name)}
    names = ("data.prepare", "ranker.train", "explainer.pretrain", "shield.bases", "rl.train")
    assert {f"shielded_recrl.{name}" for name in names} <= training
    rewards = {f"shielded_recrl.rl.rewards.{name}" for name in ("study", "click", "explanation")}
    for module in sorted(training | rewards | {"shielded_recrl.rl.rlhf"}):
        assert reached(module) == set(), module


def test_the_evaluation_reaches_all_of_it():
    folder = Path(__file__).resolve().parents[2] / "workflow/shielded_recrl/rl/evaluation"
    modules = {f"{EVALUATION}.{path.stem}" for path in folder.glob("*.py")}
    assert modules - {f"{EVALUATION}.__init__"} < reached("shielded_recrl.rl.evaluate")


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_has_less_quality_than_an_honest_explanation(trick):
    assert quality(TRICKS[trick], REQUEST, INDEX) < 0.8 * quality(HONEST, REQUEST, INDEX)


BOTTOM = [
    "empty",
    "prompt echo",
    "prompt echo that ends well",
    "names of the prompt",
    "keyword stuffing",
    "title twenty times",
]


@pytest.mark.parametrize("trick", BOTTOM)
def test_empty_texts_echoes_and_lists_are_at_the_bottom(trick):
    assert quality(TRICKS[trick], REQUEST, INDEX) == 0.0


SHORT = ["Neon Circuit", "Rustic Wedding", "Heat", "Viking Chronicle 2", "Desert Cookbook"]
# One is cut at the sixty characters that a prompt has room for.
LONG = [
    "The Slow and Careful Repair of Very Old Wooden Violins",
    "How to Cross the Northern Desert on Foot Without a Single Map",
    "A Short History of the Lamps That Nobody Ever Remembered to Light Again",
    "What the Ferryman Told His Youngest Daughter",
    "Seven Letters",
]
ABOUT = {
    "one category": Item("Runic Circuit", ("Fantasy",), ""),
    "no category": Item("Runic Circuit", (), ""),
    "three categories": Item("Runic Circuit", ("Fantasy", "Science Fiction", "Crime"), ""),
    "long title": Item("All the Doors of the Great Station Hotel by Night", ("Crime",), ""),
}


def asked(about: str, titles: list[str]) -> Request:
    history = tuple(Item(title, ("Fantasy",), "") for title in titles)
    return Request(1, 1, ABOUT[about], history, (), ())


REQUESTS = [
    pytest.param(asked(about, titles[:count]), id=f"{about}, {count} {kind} titles")
    for about in ABOUT
    for count in (1, 2, 5)
    for kind, titles in (("short", SHORT), ("long", LONG))
]


def prompt_text(request: Request) -> tuple[str, str]:
    """Both lines of templates, filled."""
    titles = "; ".join(short_title(item) for item in request.history)
    return (
        PROMPTS.prefix_template.replace("{history}", titles),
        request_text(PROMPTS.request_template, request.about),
    )


def index_of(request: Request) -> ClaimIndex:
    return ClaimIndex([CATALOGUE[0], request.about, *request.history])


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_prompt_and_its_parts_are_at_the_bottom(request_):
    history, ask = prompt_text(request_)
    whole = f"{history}\n{ask}"
    assert words(whole) == prompt_words(request_, PROMPTS)
    title = short_title(request_.about)
    texts = [
        *(whole, whole.upper(), whole.removesuffix("Why:"), history, ask, ask.removesuffix("Why:")),
        *(title, f"Next: {title}", f"{history} {title}"),
    ]
    for text in texts:
        assert quality(text, request_, index_of(request_)) == 0.0, text


@pytest.mark.parametrize("request_", REQUESTS)
def test_an_echo_before_an_honest_sentence_costs_what_it_takes(request_):
    """The text is never better for it, though the echo names what the text does not."""
    index, (history, ask) = index_of(request_), prompt_text(request_)
    for honest in (
        f"You may enjoy {short_title(request_.about)} on a quiet evening at home.",
        "This is a good pick for a quiet evening.",
    ):
        plain = quality(honest, request_, index)
        values = [quality(f"{part} {honest}", request_, index) for part in (ask, history + ask)]
        assert max(values) < 0.95 * plain
        assert quality(f"{honest} {history} {ask}", request_, index) < 0.95 * plain


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("place", [0, -1])
def test_names_are_no_echo(request_, place):
    """An honest text names item, category and one title of the history, at any length."""
    title, liked = short_title(request_.about), short_title(request_.history[place])
    category = (*request_.about.categories, "adventure")[0]
    texts = [
        f"Because you liked {liked}, you may enjoy the {category} in {title}.",
        f"You liked {liked}, and {title} is another good example of {category}.",
        f"Since you liked {liked}, we suggest {title} as the next one.",
        f"If you are in the mood for {category}, {title} is worth a try.",
        f"{title} shares its {category} with {liked}, which you already know.",
    ]
    for text in texts:
        assert echo(words(text), request_, prompt_words(request_, PROMPTS)).share == 0.0, text


def test_the_styles_the_lm_learns_are_no_echo():
    rng = random.Random(3)
    styles = load_styles(TEMPLATES / "explanations.yaml")
    items = [*ABOUT.values(), *(Item(title, ("Fantasy", "Crime"), "") for title in SHORT + LONG)]
    for _ in range(500):
        about, *history = rng.sample(items, rng.choice([2, 3, 6]))
        request = Request(1, 1, about, tuple(history), (), ())
        text = write(styles, about, history, rng)[1]
        assert echo(words(text), request, prompt_words(request, PROMPTS)).share == 0.0, text


def test_the_share_of_the_prompt_by_hand():
    """Joints: next-runic, circuit-fantasy, fantasy-is, is-fun; the first two follow the prompt."""
    prompt = prompt_words(REQUEST, PROMPTS)

    def share(text: str) -> float:
        return echo(words(text), REQUEST, prompt).share

    assert share("Next Runic Circuit: Fantasy is fun") == 2 / 4
    # One joint alone is none to speak of, and neither are two apart.
    assert share("next Runic Circuit is fun") == 0.0
    assert share("liked Rustic Wedding is next Runic Circuit") == 0.0
    # A name alone, or two, have no word of their own.
    assert share("Runic Circuit, Rustic Wedding") == share("Fantasy") == 1.0
    assert share("fun") == 0.0
    marks = echo(words("Try the next Runic Circuit: Fantasy is fun"), REQUEST, prompt).words
    assert marks == (False, False, True, True, True, True, False, False)


def test_without_the_prompt_its_row_of_names_is_known():
    text = "Rustic Wedding, Neon Circuit, Viking Chronicle 2 are what you liked before this one."
    known = judge(text, REQUEST, INDEX, prompt_words(REQUEST, PROMPTS))
    assert judge(text, REQUEST, INDEX) == known
    assert judge(HONEST, REQUEST, INDEX).quality == quality(HONEST, REQUEST, INDEX)


def test_quality_of_nothing_is_zero():
    assert quality("", REQUEST, INDEX) == quality(" .!", REQUEST, INDEX) == 0.0


def test_quality_by_hand():
    """16 words, three supported claims, nothing against it; then the same with one claim less."""
    saturation = 1 - math.exp(-16 / LENGTH_SCALE)
    assert quality(HONEST, REQUEST, INDEX) == pytest.approx(saturation)
    fewer = HONEST.replace("Science Fiction", "neon light")
    assert quality(fewer, REQUEST, INDEX) == pytest.approx(
        saturation * (UNGROUNDED + (1 - UNGROUNDED) * 2 / 3)
    )
    # Wrong category: two of three claims are supported.
    wrong = HONEST.replace("Science Fiction", "home Cooking")
    assert quality(wrong, REQUEST, INDEX) == pytest.approx(
        saturation * 2 / 3 * (UNGROUNDED + (1 - UNGROUNDED) * 2 / 3)
    )


@pytest.mark.parametrize(
    ("trick", "claims", "supported", "grounded", "distinct"),
    [
        # All three hold, Romance beside the Rustic Wedding it is of; none is the item. "is one"
        # stands twice among 22 words.
        ("praise of the history", 3, 3, 1 / 3, 20 / 21),
        # Two hold: Romance and History are of titles the text does not name.
        ("categories of others", 4, 2, 2 / 3, 1.0),
    ],
)
def test_quality_of_true_names_that_explain_nothing(trick, claims, supported, grounded, distinct):
    got = judge(TRICKS[trick], REQUEST, INDEX)
    assert (got.claims, got.supported) == (claims, supported)
    saturation = 1 - math.exp(-len(words(TRICKS[trick])) / LENGTH_SCALE)
    assert got.quality == pytest.approx(
        saturation * distinct * supported / claims * (UNGROUNDED + (1 - UNGROUNDED) * grounded)
    )


@pytest.mark.parametrize(
    ("text", "claims", "supported"),
    [
        ("You may enjoy the Romance in it.", 1, 0),
        ("Like Rustic Wedding it has Romance.", 2, 2),
        ("Like Neon Circuit it has Romance.", 2, 1),
        ("You may enjoy the Fantasy in it.", 1, 1),
        ("You may enjoy the Fantasy in Viking Chronicle 2.", 2, 2),
    ],
)
def test_a_category_of_the_history_holds_beside_its_title(text, claims, supported):
    got = judge(text, REQUEST, INDEX)
    assert (got.claims, got.supported) == (claims, supported)


def test_an_item_without_a_title_cannot_be_named():
    nameless = dataclasses.replace(REQUEST, about=Item("", ("Fantasy",), ""))
    saturation = 1 - math.exp(-6 / LENGTH_SCALE)
    got = quality("Like Neon Circuit it has Fantasy.", nameless, INDEX)
    assert got == pytest.approx(saturation * (UNGROUNDED + (1 - UNGROUNDED) * 2 / 3))
    got = quality("Like Neon Circuit it has Fantasy.", REQUEST, INDEX)
    assert got == pytest.approx(saturation * (UNGROUNDED + (1 - UNGROUNDED) * 1 / 3))


def test_quality_saturates_in_length():
    def plain(count: int) -> float:
        return quality(" ".join(f"w{i}" for i in range(count)), REQUEST, INDEX)

    values = [plain(count) for count in range(1, 60)]
    steps = np.diff(values)
    assert (steps > 0).all()
    assert (np.diff(steps) < 0).all()
    assert values[-1] == pytest.approx(UNGROUNDED, abs=1e-3)


@given(
    text=st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from([*VOCABULARY, *(i.title for i in CATALOGUE), "you", "and", "👍"]),
            max_size=30,
        ).map(" ".join),
    )
)
@settings(max_examples=150, deadline=None)
def test_quality_lies_below_one(text):
    assert 0 <= quality(text, REQUEST, INDEX) < 1


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("It is fun.", 0),
        ("It is fun. It is short.", 0),
        ("You may want more of it.", 0),
        ("You may like It because you liked Heat.", 2),
        ("“Heat” is fun.", 1),
        ("Next is fun.", 0),
        ("It Follows is fun.", 1),
        ("Fun for fans of drama.", 1),
    ],
)
def test_a_title_of_one_word_is_claimed_only_where_it_is_written_as_a_name(text, claims):
    names = ("It", "More", "Next", "Heat", "It Follows")
    index = ClaimIndex([Item("", (), ""), *(Item(name, ("Drama",), "") for name in names)])
    request = Request(1, 1, about := Item("Heat", ("Drama",), ""), (about,), (), ())
    assert judge(text, request, index).claims == claims


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("dune messiah and fiction", [(0, 2), (3, 4)]),
        ("dune and messiah", [(0, 1)]),
        ("dune dune messiah", [(0, 1), (1, 3)]),
        ("", []),
    ],
)
def test_the_longest_name_is_claimed(text, spans):
    items = [Item("", (), ""), Item("Dune", ("Fiction",), ""), Item("Dune Messiah", (), "")]
    assert ClaimIndex(items).spans(text.split()) == spans


def test_a_category_within_a_title_is_no_claim_of_its_own():
    index = ClaimIndex([Item("", (), ""), Item("Modern Cooking", ("Cooking",), "")])
    assert index.spans(["modern", "cooking"]) == [(0, 2)]


def test_an_empty_catalogue_has_no_claims():
    assert ClaimIndex([Item("", (), ""), Item("!", (), "")]).spans(["a"]) == []


def test_names_in_a_row_are_a_list_and_no_sentence():
    """Three claims: none touches the next, two meet, or all stand in a row."""
    texts = [
        "we think Neon Circuit then Runic Circuit or Fantasy do",
        "we think Neon Circuit Runic Circuit then or Fantasy do",
        "we think Neon Circuit Runic Circuit Fantasy then or do",
    ]
    values = [quality(text, REQUEST, INDEX) for text in texts]
    assert values[1] == pytest.approx(values[0])
    assert values[2] == 0.0


PAIRS = st.lists(
    st.tuples(st.integers(1, 500), st.integers(1, 500), st.integers(1, 10)),
    min_size=2,
    max_size=8,
    unique=True,
)


@given(pairs=PAIRS, seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_common_random_numbers(pairs, seed):
    """A triple's draws depend on it and the seed alone, not on order or company."""
    draws = click_draws(pairs, 12, seed)
    np.testing.assert_array_equal(click_draws(pairs[::-1], 12, seed), draws[::-1])
    np.testing.assert_array_equal(click_draws(pairs[1:], 12, seed), draws[1:])
    np.testing.assert_array_equal(click_draws(pairs, 5, seed), draws[:, :5])
    assert len(np.unique(draws)) == draws.size
    assert not np.isin(click_draws(pairs, 12, seed + 1), draws).any()
    assert ((draws >= 0) & (draws < 1)).all()


def test_click_probability_by_hand():
    settings = SimulatorSettings(relevance_weight=2.0, quality_weight=0.5)
    got = click_probability(np.array([0.5, 0.0]), np.array([0.8, 0]), np.array([-0.4, 0]), settings)
    assert got == pytest.approx([1 / (1 + math.exp(-1.0)), 0.5])


def test_click_rates_by_hand():
    draws = np.array([[0.1, 0.4, 0.6, 0.9], [0.5, 0.2, 0.3, 0.7]])
    assert click_rates(np.array([0.5, 0.5]), draws).tolist() == [0.5, 0.5]
    assert click_rates(np.array([0.0, 1.0]), draws).tolist() == [0.0, 1.0]


@given(seed=st.integers(0, 10**6), low=st.floats(0, 1), high=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_better_text_never_loses_a_click(seed, low, high):
    """With common random numbers this holds click by click, not on average."""
    low, high = sorted((low, high))
    rng = np.random.default_rng(seed)
    settings = SimulatorSettings()
    draws = click_draws([(user, 1, 1) for user in range(1, 6)], 50, seed)
    parts = rng.normal(size=5), rng.normal(size=5)
    clicks = [
        click_rates(click_probability(parts[0], np.full(5, q), parts[1], settings), draws)
        for q in (low, high)
    ]
    assert (clicks[0] <= clicks[1]).all()


def test_the_user_bias():
    values = np.array([user_bias(user, 0.3, 7) for user in range(2000)])
    assert values.mean() == pytest.approx(0, abs=0.03)
    assert values.std() == pytest.approx(0.3, rel=0.06)
    assert user_bias(5, 0.3, 7) == values[5]
    assert user_bias(5, 0.6, 7) == pytest.approx(2 * values[5])
    assert user_bias(5, 0.3, 8) != values[5]
    assert user_bias(5, 0.0, 7) == 0.0


def test_the_simulator_puts_its_parts_together():
    world = splits([[3], [1, 2], [1], [3]], [[1], [], [], []], 5)
    triples = [(1, 2, 1), (1, 4, 2)]
    chosen = SimulatorSettings(sessions=30, relevance_weight=2.0, quality_weight=0.5)
    audience = ClaimsSimulator(PROMPTS, world, triples, chosen, seed=7)
    bias = user_bias(1, 0.3, 7)
    for weight in (0.5, 0.0, 3.0):
        got = audience.clicks(np.array([0.25, 0.75]), weight)
        expected = [2.0 + weight * 0.25 + bias, -2.0 + weight * 0.75 + bias]
        assert got.probability == pytest.approx([1 / (1 + math.exp(-x)) for x in expected])
        np.testing.assert_array_equal(
            got.rate, click_rates(got.probability, click_draws(triples, 30, 7))
        )
    own = audience.clicks(np.array([0.25, 0.75]))
    np.testing.assert_array_equal(
        own.probability, audience.probability(np.array([0.25, 0.75]), 0.5)
    )
    assert audience.judge(HONEST, REQUEST) == judge(HONEST, REQUEST, INDEX)
    # The templates' words are known to be copied.
    assert audience.judge("".join(prompt_text(REQUEST)), REQUEST).quality == 0.0


def test_standardised_by_hand():
    assert standardised(np.array([1, 2, 3])).tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])
    assert standardised(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]


def splits(rows: list[list[int]], valid: list[list[int]], n_items: int) -> Splits:
    return Splits.from_sequences(rows, valid, [[] for _ in rows], n_items)


def test_relevance_by_hand_leaves_the_own_row_out():
    """User 1 liked item 1. Others: item 2 with item 1 once, item 3 never; counts 2, 1, 1.

    Cosines 1 / sqrt(2 * 1) and 0, standardised to +1 and -1. With the own row counted, item 3,
    which only user 1 took together with item 1, would not be at 0.
    """
    world = splits([[3], [1, 2], [1], [3]], [[1], [], [], []], 3)
    np.testing.assert_allclose(relevance(world, [(1, 2), (1, 3)]), [1.0, -1.0])


def test_relevance_is_a_mean_over_the_validation_items():
    """Item 3 goes with liked item 1 always (cosine 1) and with test item 2 never: 1/2.

    Item 4 goes with liked item 2 half of the time: cosine 1 / sqrt(2), mean 1 / sqrt(8); item 5
    has nothing.
    """
    world = splits([[], [1, 3], [2, 4], [2]], [[1, 2], [], [], []], 5)
    raw = np.array([0.5, 8**-0.5, 0.0])
    expected = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(relevance(world, [(1, 3), (1, 4), (1, 5)]), expected)


def test_equal_relevances_are_zero():
    world = splits([[], [2]], [[1], [1]], 3)
    assert relevance(world, [(1, 3), (1, 3)]).tolist() == [0.0, 0.0]


def test_quality_does_not_read_what_the_reward_reads():
    """The reward's list of function words is no business of the simulator."""
    other = "Neon Circuit devotees applaud Runic Circuit because Science Fiction runs through it"
    assert quality(other, REQUEST, INDEX) > 0.8
    unknown = dataclasses.replace(REQUEST, history=())
    assert quality(other, unknown, INDEX) < quality(other, REQUEST, INDEX)


def test_two_names_that_meet_at_a_comma_are_no_list():
    """An honest sentence may end a clause with one name and begin the next with another."""
    index = ClaimIndex(CATALOGUE)
    meeting = "If you are in the mood for Fantasy, Runic Circuit is worth a try."
    apart = "If you are in the mood for Fantasy then Runic Circuit is worth a try."
    assert quality(meeting, REQUEST, index) == pytest.approx(
        quality(apart, REQUEST, index), rel=0.05
    )
    assert quality(meeting, REQUEST, index) > 0.5
