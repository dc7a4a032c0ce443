"""The reward of an explanation: what a policy could try instead of explaining earns less."""

import dataclasses
import random
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from explanation_texts import CATALOGUE, HONEST, REQUEST, TRICKS, VOCABULARY
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.explainer.prompts import Item, Request, short_title
from shielded_recrl.explainer.texts import load_styles, write
from shielded_recrl.provenance import import_closure
from shielded_recrl.rl.evaluation import simulator
from shielded_recrl.rl.rewards import explanation
from shielded_recrl.rl.rewards.explanation import (
    coherence,
    connected,
    explanation_reward,
    features,
    length,
    own_words,
    repetition,
    support,
)
from shielded_recrl.rl.rewards.reading import ClaimIndex, read
from shielded_recrl.rl.settings import RewardSettings

PACKAGE = Path(explanation.__file__).parent
STYLES = load_styles(Path(__file__).parents[2] / "resources/prompts/explanations.yaml")
POSITIVE = ("length", "coherence", "features", "similarity", "support", "click")
PENALTIES = ("repetition", "toxicity")
CONTENT = ("features", "similarity", "support", "click")
LONG = "The Lord of the Rings: The Fellowship of the Ring (2001)"

WORLD = [
    Item("", (), ""),
    Item("Runic Circuit", ("Fantasy", "Science Fiction"), "A wizard repairs old machines."),
    Item("Rustic Wedding", ("Romance",), ""),
    Item("Neon Circuit", ("Science Fiction",), "Lights over a city that never sleeps."),
    Item("Viking Chronicle 2", ("History", "Fantasy"), ""),
    Item("Desert Cookbook", ("Cooking",), "Ninety recipes."),
    Item("The Longing Bride", ("Romance", "Drama"), ""),
    Item("Harbour of Glass", ("Drama", "Mystery"), ""),
    Item("Sleepless", ("Mystery",), ""),
    Item("A Garden for Winter", ("Nature", "Cooking"), ""),
    Item("Wolf Meadow 3", ("Nature",), ""),
    Item(LONG, ("Fantasy", "Adventure"), ""),
]
TOKENIZER = train_tokenizer(
    iter([HONEST, *TRICKS.values(), *(" ".join((i.title, *i.categories)) for i in WORLD)] * 3), 600
)
EMBEDDINGS = torch.randn(len(TOKENIZER), 32, generator=torch.Generator().manual_seed(0))
# Every component, toxicity as well, and a target the honest text falls short of.
DEFAULT = RewardSettings(toxicity=0.1, target_words=18)
# Tricks made of true names in whole sentences: what they lack is an explanation of the item.
PLAUSIBLE = {"praise of the history", "categories of others"}


def reward_of(items, settings=DEFAULT, relevance=0.0):
    return explanation_reward(items, TOKENIZER, EMBEDDINGS, lambda request: relevance, settings)


SMALL = reward_of(CATALOGUE)
LARGE = reward_of(WORLD)


def score(reward, texts, requests, prompts=None):
    parts = reward(prompts or [""] * len(texts), texts, requests)
    return {name: values.numpy() for name, values in parts.items()}


def total(text: str, request=REQUEST) -> float:
    return float(score(SMALL, [text], [request])["total"][0])


def reading(text, request=REQUEST, items=CATALOGUE):
    return read(text, request, ClaimIndex(items))


@st.composite
def requests(draw):
    """A request of the larger world: an item, and a history that may share a category or not."""
    order = draw(st.permutations(range(1, len(WORLD))))
    size = draw(st.integers(1, 4))
    history = tuple(WORLD[i] for i in order[1 : size + 1])
    return Request(draw(st.integers(1, 500)), order[0], WORLD[order[0]], history, (), ())


def honest_text(request: Request) -> str:
    """A plain sentence that names the item, one of its categories and the best linked title."""
    about = request.about
    liked = max(
        request.history, key=lambda past: bool(set(past.categories) & set(about.categories))
    )
    return (
        f"Because you liked {short_title(liked)}, you may enjoy the {about.categories[0]} "
        f"in {short_title(about)} as well."
    )


def trick_texts(request: Request) -> dict[str, str]:
    """What a policy could write instead."""
    titles = [short_title(item) for item in request.history]
    about, kinds = short_title(request.about), ", ".join(request.about.categories)
    seen = {request.about, *request.history}
    others = [item for item in WORLD[1:] if item not in seen]
    kinds_seen = {name for item in seen for name in item.categories}
    wrong = max(others, key=lambda item: len(set(item.categories) - kinds_seen))
    return {
        "empty": "",
        "echo": f"Liked: {'; '.join(titles)} Next: {about} ({kinds}) Why:",
        "echo that ends": f"Liked: {'; '.join(titles)}. Next: {about} ({kinds}). Why.",
        "stuffing": f"{about} {kinds} {' '.join(titles)} {kinds} {about}.",
        "constant": "This is a good choice that many people enjoy and you may like it too.",
        "title twenty times": f"{about} " * 20,
        "title as sentence": f"{about}. " * 20,
        "wrong title": honest_text(request).replace(about, short_title(wrong)),
        "run-on": honest_text(request)[:-1]
        + "".join(f" and then it has w{i} in it for you" for i in range(25)),
        "unknown script": "Этот фильм понравится всем, кто любит хорошие истории о людях и море.",
    }


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_earns_less_than_an_honest_explanation(trick):
    assert total(TRICKS[trick]) < total(HONEST) - (0.1 if trick in PLAUSIBLE else 0.3)


@given(request=requests())
@settings(max_examples=60, deadline=None)
def test_a_trick_earns_less_on_any_request(request):
    tricks = trick_texts(request)
    parts = score(LARGE, [honest_text(request), *tricks.values()], [request] * (1 + len(tricks)))
    for row, trick in enumerate(tricks, start=1):
        assert parts["total"][row] < parts["total"][0] - 0.1, trick


@given(request=requests(), component=st.sampled_from(("features", "support", "click")))
@settings(max_examples=60, deadline=None)
def test_no_component_of_content_pays_for_a_trick(request, component):
    """Each alone, as if it were the only one with a weight."""
    tricks = trick_texts(request)
    # Its claims are supported, and a run-on text loses by length.
    del tricks["run-on"]
    values = score(LARGE, [honest_text(request), *tricks.values()], [request] * (1 + len(tricks)))[
        component
    ]
    assert values[0] > 0
    for row, trick in enumerate(tricks, start=1):
        assert values[row] < values[0], trick


@given(request=requests())
@settings(max_examples=40, deadline=None)
def test_similarity_pays_next_to_nothing_for_a_trick(request):
    """Absolute bounds: how near an honest text lies depends on the embeddings, here random ones."""
    tricks = trick_texts(request)
    values = score(LARGE, list(tricks.values()), [request] * len(tricks))["similarity"]
    near = dict(zip(tricks, values.tolist(), strict=True))
    for trick in ("empty", "constant", "unknown script", "stuffing"):
        assert near[trick] == pytest.approx(0.0, abs=0.01), trick
    for trick in ("title twenty times", "title as sentence"):
        assert near[trick] < 0.1, trick
    for trick in ("echo", "echo that ends"):
        assert near[trick] < 0.4, trick


def test_an_honest_explanation_by_hand():
    """16 of 18 words; title, category and link named; all three supported."""
    parts = {name: float(values[0]) for name, values in score(SMALL, [HONEST], [REQUEST]).items()}
    assert parts["length"] == pytest.approx(16 / 18)
    for name in ("coherence", "features", "support"):
        assert parts[name] == 1.0
    assert parts["repetition"] == 0.0
    expected = sum(getattr(DEFAULT, name) * parts[name] for name in POSITIVE)
    expected -= sum(getattr(DEFAULT, name) * parts[name] for name in PENALTIES)
    assert parts["total"] == pytest.approx(expected, abs=1e-6)


def test_the_default_weights_sum_to_one():
    assert sum(getattr(RewardSettings(), name) for name in POSITIVE) == pytest.approx(1.0)


def test_by_default_nothing_is_charged_for_toxicity():
    assert "toxicity" not in score(reward_of(CATALOGUE, RewardSettings()), [HONEST], [REQUEST])


@pytest.mark.parametrize("text", ["", " \n", "?!"])
def test_an_empty_text_earns_nothing(text):
    assert total(text) == 0.0


TEXT = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(
            [*VOCABULARY, *(i.title for i in CATALOGUE), "you", "the", ".", "Ａé", "👍"]
        ),
        max_size=40,
    ).map(" ".join),
)


@given(text=TEXT)
@settings(max_examples=150, deadline=None)
def test_components_lie_in_the_unit_interval(text):
    parts = score(SMALL, [text], [REQUEST])
    assert set(parts) == {*POSITIVE, *PENALTIES, "total"}
    assert all(0 <= parts[name][0] <= 1 for name in (*POSITIVE, *PENALTIES))
    # Content counts as far as the text is coherent.
    assert all(parts[name][0] <= parts["coherence"][0] + 1e-6 for name in CONTENT)


@given(prompts=st.lists(st.text(max_size=60), min_size=len(TRICKS), max_size=len(TRICKS)))
@settings(max_examples=25, deadline=None)
def test_the_prompt_is_never_scored(prompts):
    texts = [HONEST, *TRICKS.values()][: len(prompts)]
    plain, other = (score(SMALL, texts, [REQUEST] * len(texts), p) for p in (None, prompts))
    for name, values in plain.items():
        np.testing.assert_array_equal(values, other[name])


def test_rows_do_not_see_each_other():
    texts = [HONEST, *TRICKS.values()]
    together = score(SMALL, texts, [REQUEST] * len(texts))
    for row, text in enumerate(texts):
        for name, values in score(SMALL, [text], [REQUEST]).items():
            assert values[0] == pytest.approx(together[name][row], abs=1e-6)


def test_responses_and_requests_come_in_pairs():
    with pytest.raises(ValueError, match="1 prompts, 1 responses and 2 contexts"):
        SMALL([""], [HONEST], [REQUEST] * 2)
    assert SMALL([], [], [])["total"].shape == (0,)


def test_the_reward_rises_with_the_gold_quality_it_does_not_know():
    """Texts as the LM writes them, of all styles: the evaluation's quality orders them alike."""
    rng = random.Random(5)
    index = simulator.ClaimIndex(WORLD)
    texts, asked = [], []
    for _ in range(300):
        about, *history = rng.sample(WORLD[1:], 5)
        # A third of the texts speaks of another item, as an LM at the start of training does.
        other = rng.choice(WORLD[1:]) if rng.random() < 0.3 else about
        texts.append(write(STYLES, other, history, rng)[1])
        asked.append(Request(1, 1, about, tuple(history), (), ()))
    gold = [
        simulator.judge(text, ask, index).quality for text, ask in zip(texts, asked, strict=True)
    ]
    proxy = score(LARGE, texts, asked)["total"]
    assert spearmanr(gold, proxy).statistic > 0.9


@pytest.mark.parametrize("module", sorted(path.stem for path in PACKAGE.glob("[!_]*.py")))
def test_no_reward_can_reach_the_simulator(module):
    closure = import_closure(f"shielded_recrl.rl.rewards.{module}")
    assert "shielded_recrl.rl.evaluation.simulator" not in closure


def test_toxicity_is_the_text_s_own_and_loaded_when_asked(monkeypatch):
    """A rude word costs; one in a title of the history does not."""
    rude = Item("Damn Bitch", ("Science Fiction",), "")
    items = [*CATALOGUE, rude]
    request = dataclasses.replace(REQUEST, history=(rude,))
    named = HONEST.replace("Neon Circuit", "Damn Bitch")
    texts = [HONEST, HONEST.replace("you may", "you fucking idiot may"), named]
    parts = score(reward_of(items), texts, [REQUEST, REQUEST, request])
    assert parts["toxicity"][1] > 0.9
    assert parts["toxicity"][2] == pytest.approx(parts["toxicity"][0])
    assert parts["total"][1] < parts["total"][0] - 0.05
    # A title that nobody liked is the text's own word.
    assert score(reward_of(items), [named], [REQUEST])["toxicity"][0] > 0.9
    monkeypatch.setitem(sys.modules, "shielded_recrl.audit.toxicity", None)
    free = reward_of(CATALOGUE, DEFAULT.model_copy(update={"toxicity": 0.0}))
    assert "toxicity" not in score(free, [HONEST], [REQUEST])
    with pytest.raises(UserError, match="set the weight to 0"):
        reward_of(CATALOGUE)


def test_a_scorer_that_is_missing_is_said_before_the_first_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(UserError, match=r"needs alt-profanity-check .* set the weight to 0"):
        reward_of(CATALOGUE)


def test_click_reads_the_relevance_and_may_weigh_nothing():
    silent = DEFAULT.model_copy(update={"click": 0.0})
    cold, warm = (
        score(reward_of(CATALOGUE, silent, relevance), [HONEST], [REQUEST])
        for relevance in (-2.0, 2.0)
    )
    assert cold["click"][0] < warm["click"][0] < 1
    assert cold["total"][0] == warm["total"][0]


def test_length_rises_stays_and_falls():
    got = {count: length(count, 10) for count in (0, 5, 10, 15, 20, 30, 40, 100)}
    assert got == pytest.approx({0: 0, 5: 0.5, 10: 1, 15: 1, 20: 1, 30: 0.5, 40: 0, 100: 0})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It has Fantasy in it.", 1 / 3),
        ("It has Cooking in it.", 0),
        ("It has Fantasy and Cooking in it.", 1 / 6),  # half of what it names is supported
        ("Runic Circuit is good.", 1 / 3),
        ("Runic nights are good.", 1 / 12),  # half of the title's words count half
        ("After Rustic Wedding.", 1 / 6),  # of the history, but shares no category
        ("After Neon Circuit.", 1 / 12 + 1 / 3),  # shares one, and a word of the title
        ("After Desert Cookbook.", 0),  # not of the history
        ("runic circuit: FANTASY, as in viking chronicle 2!", 1),
    ],
)
def test_features_by_hand(text, expected):
    assert features(reading(text), REQUEST) == pytest.approx(expected)


def test_features_ask_for_no_more_than_the_metadata_has():
    bare = dataclasses.replace(REQUEST, about=Item("Runic Circuit", (), ""), history=())
    assert features(reading("Runic Circuit is good.", bare), bare) == 1.0
    # No title of the history shares a category, so naming any is all that can be asked.
    far = dataclasses.replace(REQUEST, history=(CATALOGUE[2],))
    text = "After Rustic Wedding, the Fantasy in Runic Circuit."
    assert features(reading(text, far), far) == 1.0
    nothing = dataclasses.replace(REQUEST, about=Item("", (), ""), history=())
    assert features(reading(HONEST, nothing), nothing) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HONEST, 1.0),
        (HONEST.replace("Science Fiction", "Cooking"), 2 / 3),
        ("Desert Cookbook has Cooking and Fantasy.", 1 / 3),
        ("You may like this one.", 0.5),
    ],
)
def test_support_by_hand(text, expected):
    assert support(reading(text)) == pytest.approx(expected)


def test_repetition_by_hand():
    """Trigrams of `a b a b a`: aba, bab, aba."""
    assert repetition(reading("a b a b a")) == pytest.approx(1 / 3)
    assert repetition(reading("a b")) == repetition(reading("")) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("You may like this one.", 1.0),
        ("You may like this one", 0.5),  # does not end
        ("you you you you.", 1 / 3),  # one bigram out of three
        ("Wonderful dragon castle quest.", 0.0),  # no function word
        # One function word in ten: half of the share prose has.
        ("Wonderful dragon castle quest brings old magic into dark woods.", 0.5),
        ("", 0.0),
    ],
)
def test_coherence_by_hand(text, expected):
    assert coherence(reading(text), REQUEST) == pytest.approx(expected)


def test_names_need_words_between_them():
    """Three names and three other words, where six would do."""
    listed = reading("the Neon Circuit and Fantasy in Runic Circuit")
    assert connected(listed) == pytest.approx(3 / 6)
    assert connected(reading(HONEST)) == connected(reading("no name")) == 1.0


def test_echoed_words_count_against_coherence():
    """Of the 9 5-grams, the 3 within the 7 words taken from the history are copied."""
    echo = reading("You have seen all of Rustic Wedding Neon Circuit Viking Chronicle 2 so.")
    assert coherence(echo, REQUEST) / connected(echo) == pytest.approx(1 - 3 / 9)


def test_naming_a_long_title_costs_no_coherence():
    about = Item(LONG, ("Fantasy",), "")
    request = Request(1, 1, about, (Item("Heat", ("Crime",), ""),), (), ())
    text = f"You may enjoy {LONG} because it is a fantasy that many people liked."
    assert coherence(reading(text, request, [about]), request) >= 0.95


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("dune messiah and fiction", [(0, 2), (3, 4)]),
        ("dune and messiah", [(0, 1)]),
        ("dune dune messiah", [(0, 1), (1, 3)]),
        ("dune messiah of dune", [(0, 4)]),
        ("messiah dune messiah of", [(1, 3)]),
        ("it was dune messiah of", [(2, 4)]),  # "It" is a title, and a word of every text
        ("", []),
    ],
)
def test_the_longest_name_is_claimed(text, spans):
    titles = ["Dune", "Dune Messiah", "Dune Messiah of Dune", "It", "!"]
    items = [Item(title, ("Fiction",), "") for title in titles]
    assert ClaimIndex(items).find(text.split()) == spans


@given(
    names=st.lists(st.lists(st.sampled_from("pqrs"), min_size=1, max_size=3), max_size=6),
    tokens=st.lists(st.sampled_from("pqrst"), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_the_index_finds_what_a_scan_finds(names, tokens):
    phrases = {tuple(name) for name in names}
    index = ClaimIndex([Item(" ".join(name), (), "") for name in names])
    found, start = [], 0
    while start < len(tokens):
        fits = [p for p in phrases if tuple(tokens[start : start + len(p)]) == p]
        if fits:
            found.append((start, start + max(map(len, fits))))
        start = found[-1][1] if fits else start + 1
    assert index.find(tokens) == found
    assert all(left[1] <= right[0] for left, right in pairwise(found))


@pytest.mark.parametrize(
    ("text", "claims", "supported"),
    [
        ("You may like this one, as fans of it do.", 0, 0),
        # At the head of a sentence May may be the film of the history; Fans is a film of nobody's.
        ("May we recommend it? Fans like it.", 1, 1),
        ("You may like May as much as Fans.", 2, 1),
        ("You may like MAY.", 1, 1),
        ("Heat is fun. Next: Heat (Drama).", 2, 2),
        ("heat is fun.", 0, 0),
        ("Fans is fun.", 0, 0),
        ("You may like the Mayor Of May and drama.", 2, 1),
        # Lower case of the first letter is two characters, one of them no letter.
        ("You may like İst May.", 1, 1),
    ],
)
def test_a_title_of_one_word_is_claimed_only_where_it_is_written_as_a_name(text, claims, supported):
    drama = ("Drama",)
    films = [Item(name, drama, "") for name in ("May", "Fans", "Heat")]
    index = ClaimIndex([*films, Item("Mayor of May", (), "")])
    request = Request(1, 1, films[2], (films[0],), (), ())
    got = read(text, request, index)
    assert (len(got.claims), len(got.supported)) == (claims, supported)


def test_everyday_words_cost_an_honest_text_nothing():
    """That a catalogue holds films called May and Like makes no sentence worse."""
    crowded = [*CATALOGUE, Item("May", ("Drama",), ""), Item("Enjoy", ("Drama",), "")]
    assert reading(HONEST, items=crowded).claims == reading(HONEST).claims


def test_own_words_leaves_unsupported_names():
    text = "Desert Cookbook or Neon Circuit, you choose."
    assert own_words(reading(text)) == "desert cookbook or you choose"


def test_a_category_within_a_title_is_a_name_and_not_a_claim():
    about = Item("Cooking Alone", ("Travel",), "")
    request = dataclasses.replace(REQUEST, about=about, history=())
    found = reading("You may like Cooking Alone.", request, [about, *CATALOGUE])
    assert found.claims == found.supported == {("cooking", "alone")}


def test_wrong_is_worse_than_nothing_and_nothing_worse_than_right():
    """The same sentence of another item, of none, and of the item."""
    wrong, nothing, right = (
        total(f"Many people recommend {name} and it is easy to see why.")
        for name in ("Desert Cookbook", "this little one", "Runic Circuit")
    )
    assert wrong + 0.05 < nothing < right - 0.1


@given(request=requests())
@settings(max_examples=20, deadline=None)
def test_one_claim_less_earns_less(request):
    """The signal PPO climbs: an explanation that names a category beats one that names none."""
    about = short_title(request.about)
    assume(about != LONG)
    full = honest_text(request)
    fewer = full.replace(f"the {request.about.categories[0]} in ", "many things in ")
    parts = score(LARGE, [full, fewer], [request] * 2)["total"]
    assert parts[1] < parts[0]
