"""The reward of a response: its components by hand, and texts that try to cheat."""

import polars as pl
import pytest
import torch

from shielded_recrl.dialogue.corpus.dialogues import SCHEMAS, SLOT, Dialogue, Dialogues, Turn
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.response.prompts import ResponseRequest
from shielded_recrl.dialogue.rl.reward import (
    Form,
    Overall,
    copying,
    dialogue_reward,
    form,
    repetition,
    support,
    written_titles,
)
from shielded_recrl.dialogue.settings import DialogueRewardSettings

CONTEXT = (
    Turn("seeker", "Hello! I like space films with robots, such as <movie>.", (1,)),
    Turn("recommender", "That is a great one! What did you like about it?", ()),
    Turn("seeker", "The music and the robots. Can you name some more like that?", ()),
)
TITLES = ("Heat", "The Iron Giant", "Get Out", "About Time", "It")
REQUEST = ResponseRequest(
    0, 3, CONTEXT, ("curious",), ("The Iron Giant (1999)", "Heat (1995)"), "Try <movie>!"
)
HONEST = (
    "Sure! Have you seen <movie>? It has lovely music, too.",
    "You would enjoy <movie> or <movie>.",
    "Which actors do you like best?",
    "You are welcome, have fun with it!",
)
CHEATS = {
    "nothing": "",
    "blanks": "  ",
    "slots": " ".join([SLOT] * 8),
    "slots with marks": "<movie>! <movie>! <movie>! <movie>! <movie>!",
    "broken slots": "You should see <movie or <mov",
    "repeated phrase": "so great so great so great so great so great!",
    "repeated words": "great great great great great great great great.",
    "context": "The music and the robots. Can you name some more like that?",
    "context in parts": "That is a great one! I like space films with robots, such as <movie>.",
    "title written out": "You should watch The Iron Giant, it is great.",
    "year written out": "You should watch Heat (1995), it is great.",
    "several turns": "You should see <movie>.\nSeeker: thanks!\nRecommender: bye.",
    "several turns as the critic reads them": "Try <movie>! seeker: thanks! recommender : bye!",
    "several lines": "You should see <movie>.\u2028Thanks, it is great.",
    "prompt": "Feels: curious Movies: none Recommender: hello",
    "one word": "great",
}


class Kind:
    """A critic that likes everything equally: nothing but the other components tells texts apart."""

    def __init__(self, score=0.5):
        self.score = score

    def __call__(self, contexts, responses):
        assert all(isinstance(turn, Turn) for context in contexts for turn in context)
        return torch.full((len(responses), len(HEADS)), self.score)


@pytest.fixture(scope="module")
def films() -> Dialogues:
    rows = [(n, [f"m{n}"], title, 1990 + n, [], 1) for n, title in enumerate(TITLES, start=1)]
    items = pl.DataFrame(rows, schema=SCHEMAS["items"], orient="row")
    return Dialogues(items, [Dialogue(0, "train", CONTEXT, {})])


def scored(films, texts, critic=None, **weights):
    reward = dialogue_reward(critic or Kind(), films, DialogueRewardSettings(**weights))
    return reward([""] * len(texts), list(texts), [REQUEST] * len(texts))


@pytest.mark.parametrize("name", CHEATS)
def test_what_cheats_is_worth_less_than_any_honest_reply(films, name):
    totals = scored(films, [*HONEST, CHEATS[name]])["total"]
    assert totals[-1] < totals[:-1].min() - 0.04


def test_a_critic_that_is_talked_into_more_does_not_pay_for_spam(films):
    class Fond:
        """Likes what names many films, as far as a score can."""

        def __call__(self, contexts, responses):
            fond = torch.tensor([min(text.count(SLOT) / 8, 1.0) for text in responses])
            return fond[:, None].expand(-1, len(HEADS)) * 0.3 + 0.4

    totals = scored(films, [HONEST[0], CHEATS["slots"]], Fond())["total"]
    assert totals[1] < totals[0]


def test_total_is_the_weighted_sum(films):
    parts = scored(
        films, CHEATS.values(), critic=Kind(0.25), format=0.3, support=0.4, repetition=0.7
    )
    want = (
        parts["critic"]
        + 0.3 * parts["format"]
        + 0.4 * parts["support"]
        - 0.7 * parts["repetition"]
        - 0.5 * parts["copying"]
    )
    torch.testing.assert_close(parts["total"], want)
    for name, values in parts.items():
        assert name == "total" or (values.min() >= 0 and values.max() <= 1)


def test_an_empty_response_has_nothing_even_of_a_critic_that_likes_it(films):
    parts = scored(films, ["", " \n"], critic=Kind(1.0))
    assert all(not values.any() for values in parts.values())


def test_overall_is_the_head_that_is_read(films):
    class ByHead:
        def __call__(self, contexts, responses):
            return torch.arange(5.0).repeat(len(responses), 1) / 10

    got = Overall(ByHead())(["", ""], ["a", "b"], [REQUEST] * 2)
    torch.testing.assert_close(got["critic"], torch.full((2,), HEADS.index("overall") / 10))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Have you seen <movie>?", 4),
        ("you may like <movie>", 4),
        ("you may like this one :)", 4),
        ("you may like this one", 3),
        ("<movie>", 3),
        ("Try < movie > tonight!", 3),
        ("Seeker: hello there.", 3),
        ("Great! seeker: thanks for that one.", 3),
        ("There are more movies: <movie> is fun.", 4),
        ("word " * 60 + "end.", 3),
        ("<movie> <movi", 1),
    ],
)
def test_format_counts_four_rules(text, kept):
    assert form(text, 2, 60) == kept / 4


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("You should watch The Iron Giant.", 1),
        ("Get Out is great", 1),
        ("get out of here, about time!", 0),
        ("I loved it. It is fun", 0),
        ("The heat is on", 0),
        ("I saw Heat last week", 1),
        ("I saw Heat (1995) last week", 1),
        ("An old one (1953)", 1),
        ("About <movie> Time", 0),
    ],
)
def test_titles_are_found_where_they_are_written_as_titles(films, text, titles):
    assert written_titles(text, Form(films, DialogueRewardSettings()).index) == titles


def test_support_is_the_share_of_films_that_a_recommended_one_stands_for(films):
    index = Form(films, DialogueRewardSettings()).index
    assert support("Hello!", 2, index) == 1.0
    assert support("<movie> or <movie>", 2, index) == 1.0
    assert support("<movie> or <movie>", 1, index) == 0.5
    assert support("<movie>, or The Iron Giant", 2, index) == 0.5
    assert support("<movie>", 0, index) == 0.0


def test_repetition_and_copying_by_hand():
    assert repetition("a b a b") == pytest.approx(1 / 3, abs=1e-6)
    assert repetition("Have you seen <movie> or <movie>?") == 0
    assert copying("Can you name some of them", CONTEXT) == pytest.approx(4 / 6, abs=1e-6)
    # Three words in a row are how everybody speaks.
    assert copying("Can you name them", CONTEXT) == 0
    assert copying("", CONTEXT) == 0
