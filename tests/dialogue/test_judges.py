"""The judges: bounded, fond of no trick, in the known order, and each with evidence of its own."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from shielded_recrl.dialogue import make, prepare
from shielded_recrl.dialogue.corpus.dialogues import Dialogues, Turn
from shielded_recrl.dialogue.critique.agreement import agreement
from shielded_recrl.dialogue.critique.judged import SAMPLED
from shielded_recrl.dialogue.judge import judged, responses
from shielded_recrl.dialogue.judges import words as lexicon
from shielded_recrl.dialogue.judges.base import HEADS, Case, read
from shielded_recrl.dialogue.judges.counts import Chance, Likeness, Trigrams, word_effects
from shielded_recrl.dialogue.judges.rules import (
    Rules,
    built,
    in_order,
    in_place,
    of_its_own,
    varied,
)
from shielded_recrl.dialogue.judges.unseen import Answered, Unseen
from shielded_recrl.dialogue.response.corrupt import FAULTS
from shielded_recrl.dialogue.response.prompts import ResponseRequest, spread
from shielded_recrl.dialogue.settings import DialogueWorldSettings
from shielded_recrl.errors import UserError
from shielded_recrl.provenance import import_closure

TITLES = [f"Film {number}" for number in range(10)]
SEEKER = Turn("seeker", "I am so sad, <movie> was boring. I need comedies.", (1,))
HELPFUL = "Sorry to hear that! Have you seen <movie>? It is a hilarious comedy."


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Dialogues of the embedded world."""
    folder = tmp_path_factory.mktemp("world")
    sizes = DialogueWorldSettings(dialogues=160, films=60, comments=280)
    make.main(out=folder / "raw", settings=sizes)
    prepare.main(raw=folder / "raw", out=folder / "data")
    return Dialogues.load(folder / "data")


@pytest.fixture(scope="module")
def titles(world):
    return [world.title(item) for item in range(1, world.n_items + 1)]


@pytest.fixture(scope="module")
def held_out(world):
    """Requests of the test split; films are recommended at random."""
    rng = np.random.default_rng(0)
    found = [
        ResponseRequest(
            dialogue.index,
            place,
            dialogue.turns[:place],
            (),
            tuple(world.title(int(item)) for item in rng.integers(1, world.n_items, 10)),
            turn.text,
        )
        for dialogue in world.split("test")
        for place, turn in enumerate(dialogue.turns)
        if place and turn.role == "recommender"
    ]
    return spread(found, 60)


@pytest.fixture(scope="module")
def judges(world, titles):
    return {"rules": Rules(titles), "unseen": Unseen.fit(world.split("train"))}


@pytest.fixture(scope="module")
def table(held_out, titles, judges):
    """Judged responses, those of other turns in the place of sampled ones."""
    sampled = [request.gold for request in held_out[7:] + held_out[:7]]
    return judged(responses("test", held_out, sampled, titles, seed=1), judges)


def overall(judge, request, text):
    return judge(Case(request.context, text, request.recommended))["overall"]


@pytest.mark.parametrize("name", ["rules", "unseen"])
@pytest.mark.parametrize("text", ["", "  ", "\n", "?! ... ,", "~~"])
def test_nothing_has_nothing(judges, held_out, name, text):
    found = judges[name](Case(held_out[0].context, text, TITLES))
    assert found == dict.fromkeys(HEADS, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("aeIi <movie>?!.,'\n19(é王")), st.integers(0, 3))
def test_scores_are_bounded_whatever_is_said(text, shown):
    for judge in (Rules(["The Heat (1995)"]), _small_unseen()):
        found = judge(Case([SEEKER], text, TITLES[:shown]))
        assert tuple(found) == HEADS
        assert all(0 <= score <= 1 for score in found.values())


def _small_unseen(_made=[]):  # noqa: B006
    if not _made:
        rows = [Answered((SEEKER,), f"Have you seen <movie> number {n}?", n) for n in range(30)]
        _made.append(Unseen(rows, rows))
    return _made[0]


TRICKS = {
    "one word": lambda request: "Ok",
    "slots": lambda request: " ".join(["<movie>"] * 10),
    "list of slots": lambda request: "You should see " + ", ".join(["<movie>"] * 9) + "!",
    "flattery": lambda request: (
        "What a wonderful question! You are amazing, I love you, you have the best and most perfect "
        "taste, it is so great and fantastic to talk to you, you wonderful person!"
    ),
    "verbosity": lambda request: (
        "I think that this is something that we could talk about and that is why I would say that "
        "it is what it is, and you know that I know that you know, and so it goes on and on, and "
        "there is much more that could be said about all of it, and that is what I wanted to say."
    ),
    "copy of the last turn": lambda request: request.context[-1].text,
    "copy of the dialogue": lambda request: " ".join(turn.text for turn in request.context),
    "gold over and over": lambda request: " ".join([request.gold] * 4),
    "question marks": lambda request: "What? Who? Why? How? Do you? Have you? Would you? Is it?",
    "cue words": lambda request: (
        "Great you comedy horror plot story stars director what? have? tell know hope try check "
        "recommend suggest seen <movie> because funny"
    ),
    "titles written out": lambda request: "You should see Heat (1995) and Ronin (1998)!",
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", ["rules", "unseen"])
def test_no_trick_does_as_well_as_people(judges, held_out, name, trick):
    judge = judges[name]
    people = np.mean([overall(judge, request, request.gold) for request in held_out])
    tricked = [overall(judge, request, TRICKS[trick](request)) for request in held_out]
    assert np.mean(tricked) < 0.75 * people


def test_length_alone_earns_nothing(judges, held_out):
    filler = " I would say that it is one of those that you could see on such a day as this."
    for judge in judges.values():
        scores = [
            [overall(judge, request, request.gold + filler * times) for times in (0, 3, 6)]
            for request in held_out
        ]
        plain, long, longest = np.mean(scores, axis=0)
        assert plain > 2 * long
        assert long >= longest


def test_people_are_above_every_fault(table):
    found = agreement(table, resamples=100, seed=0)
    for judge, rows in found["orders"].items():
        orders = rows["overall"]
        assert {name for name in orders if name.startswith("gold > corrupted:")} == {
            f"gold > corrupted:{how}" for how in FAULTS
        }
        for how in ("shuffled", "repeated", "cut", "empty", "titles"):
            row = orders[f"gold > corrupted:{how}"]
            assert row["low"] > 0.5, (judge, how, row)
            assert row["low"] <= row["mean"] <= row["high"]
        assert orders["gold > corrupted:foreign"]["mean"] > 0.5
    empty = found["orders"]["rules"]["overall"][f"{SAMPLED} > corrupted:empty"]
    assert empty["low"] > 0.9


def test_rank_correlations_are_spearmans(table):
    found = agreement(table, resamples=20, seed=0)["rank_correlations"]["rules and unseen"]
    for head in HEADS:
        expected = spearmanr(table[f"rules_{head}"], table[f"unseen_{head}"]).statistic
        assert found[head]["all"]["mean"] == pytest.approx(expected, abs=1e-6)
    # They rest on different evidence: no judge of sound responses is the other's double.
    assert found["overall"][SAMPLED]["high"] < 0.9


def test_what_games_one_judge_does_not_game_the_other(judges, held_out, world):
    """The response that a judge likes best in some place, said everywhere."""
    pool = [
        turn.text
        for dialogue in world.split("train")[:40]
        for turn in dialogue.turns
        if turn.role == "recommender"
    ][:80]
    probe = held_out[:12]
    scores = {
        name: np.array([[overall(judge, request, text) for text in pool] for request in probe])
        for name, judge in judges.items()
    }
    for one, other in (("rules", "unseen"), ("unseen", "rules")):
        favourite = scores[one].mean(axis=0).argmax()
        loss = scores[other].mean(axis=0).max() - scores[other][:, favourite].mean()
        assert loss > 0


def test_rules_of_each_head():
    def said(text, titles=TITLES, context=(SEEKER,)):
        return Rules()(Case(context, text, titles))

    helpful = said(HELPFUL)
    cold = said("Have you seen <movie>? It is a hilarious comedy.")
    assert helpful["empathy"] > cold["empathy"]
    bare = said("Sorry to hear that! Have you seen <movie>?")
    assert helpful["informativeness"] > bare["informativeness"]
    none = said("Sorry to hear that! It is a hilarious comedy.")
    assert helpful["recommendation"] > none["recommendation"]
    assert helpful["recommendation"] > said(HELPFUL, [])["recommendation"]
    flat = said("Sorry to hear that! There is <movie>. It is a hilarious comedy.")
    assert helpful["engagement"] > flat["engagement"]
    assert helpful["overall"] == pytest.approx(np.mean([helpful[head] for head in HEADS[:-1]]))
    # Another genre than the one asked for is beside the point.
    asked = [Turn("seeker", "I love horror movies.", ())]
    right, wrong = (
        said(f"Then try <movie>, a very creepy {genre} from Spain.", context=asked)
        for genre in ("horror", "romance")
    )
    assert right["informativeness"] > wrong["informativeness"]


def test_what_is_said_at_the_wrong_time_is_worth_half():
    hello, likes = Turn("seeker", "Hi there!", ()), Turn("seeker", "I love horror movies.", ())
    bye, other = Turn("seeker", "Thanks, bye!", ()), Turn("recommender", "I see.", ())
    middle, late = [hello, other, likes], [hello, other] * 3 + [likes]

    def place(context, text):
        return in_place(context, context[-1].text, read(text))

    assert place([hello], "Hello! What kind of movies do you like?") == 1
    assert place([hello], "It was great.") == 0.5
    assert place(middle, "Try <movie>.") == 1
    assert place(middle, "Hello! I like those too.") == 0.5
    assert place(late, "What kind of movies do you like?") == 0.5
    assert place([*middle, other, bye], "You are welcome, bye!") == 1
    assert place(middle, "You are welcome, bye!") == 0.5
    assert place([*middle, other, bye], "Do you like comedies?") == 0.5
    said = [Rules()(Case(turns, "Hello! I like those too.")) for turns in ([hello], middle)]
    assert said[0]["overall"] > said[1]["overall"]


@pytest.mark.parametrize("part", [in_order, varied, built])
def test_what_people_write_is_sound(part, world):
    texts = [turn.text for dialogue in world.split("test") for turn in dialogue.turns]
    assert np.mean([part(read(text)) for text in texts]) > 0.95


def test_unsound_texts():
    assert in_order(read("great the. is of the You a of movie")) == 0
    assert in_order(read("You are right, that one is great!")) == 1
    assert in_order(read("I would like to recommend the")) < 1
    assert varied(read("try it try it try it try it")) == 0
    assert built(read("comedy horror plot story stars director recommend suggest")) == 0
    context = [Turn("seeker", "I would like to see a funny film tonight", ())]
    assert of_its_own(read("I would like to see a funny film tonight"), context) == 0
    assert of_its_own(read("That is the best one of all"), context) == 1


def test_a_title_written_out_is_no_recommendation():
    asked, text = [Turn("seeker", "Any good film?", ())], "You should see {}, it is great fun!"
    judge = Rules(["The Long Goodbye (1973)", "It (2017)"])
    slot = judge(Case(asked, text.format("<movie>"), TITLES))
    known = judge(Case(asked, text.format("the long goodbye"), TITLES))
    assert known["recommendation"] < 0.2 * slot["recommendation"]
    assert known["overall"] < slot["overall"]
    # Of known films one is called It; that is a word.
    other = judge(Case(asked, text.format("anything at all"), TITLES))
    assert other["overall"] > known["overall"]


def test_moods():
    assert lexicon.mood("Hello there") == "greeting"
    assert lexicon.mood("") == "greeting"
    assert lexicon.mood("It was awful and boring") == "negative"
    assert set(lexicon.REACTIONS) >= set(lexicon.EMOTIONS)


@pytest.mark.parametrize("module", ["critic", "critique.model", "rl.reward", "train"])
def test_what_learns_reaches_no_line_of_the_unseen_judge(module):
    reached = import_closure(f"shielded_recrl.dialogue.{module}")
    assert "shielded_recrl.dialogue.judges.base" in reached
    assert not {"shielded_recrl.dialogue.judges.unseen", "shielded_recrl.dialogue.judge"} & reached


def test_the_unseen_judge_wants_people(world):
    with pytest.raises(UserError, match="expected at least 40; give more dialogues"):
        Unseen.fit(world.split("train")[:3])


def test_the_unseen_judge_is_the_same_each_time(world, judges, held_out):
    again = Unseen.fit(world.split("train"))
    for request in held_out[:5]:
        case = Case(request.context, request.gold, request.recommended)
        assert again(case) == judges["unseen"](case)


def test_trigrams_by_hand():
    model = Trigrams(["a b", "a b", "a c"])
    # c came once, so it is rare; a, b, rare and the end are four kinds.
    # P(a) of no history: 9 tokens, 4 kinds, from 1 / 4.
    single = (3 + 4 * 0.25) / (9 + 4)
    begun = (3 + 1 * single) / (3 + 1)
    assert model.probability(("<begin>", "<begin>", "a")) == pytest.approx((3 + begun) / 4)
    for history in (("<begin>", "<begin>"), ("<begin>", "a"), ("b", "b"), ("a", "b")):
        total = sum(model.probability((*history, word)) for word in ("a", "b", "<rare>", "<end>"))
        assert total == pytest.approx(1)
    assert model.surprisal("a b") < model.surprisal("b a") < math.inf


def test_a_text_is_most_like_itself():
    texts = ["have you seen it", "thank you", "what about <movie>", "i have not seen it"]
    index = Likeness(texts)
    for place, text in enumerate(texts):
        assert index.nearest(text, 2)[0] == place
        assert sum(weight**2 for weight in index.vector(text).values()) == pytest.approx(1)
    # Nothing known: all are equally far, in their order.
    assert index.nearest("zebra", 4).tolist() == [0, 1, 2, 3]


def test_words_have_the_effects_they_were_given():
    rng = np.random.default_rng(0)
    rows = [set(rng.choice(["up", "down", "aside"], 2).tolist()) for _ in range(400)]
    values = [("up" in row) - ("down" in row) for row in rows]
    found = word_effects(rows, values)
    assert found["up"] > 0.5 > abs(found["aside"])
    assert found["down"] < -0.5
    assert word_effects([{"one"}, {"two"}], [1, 2]) == {}


def test_what_is_common_is_not_likely_for_that():
    # It happens in nine of ten rows of either kind: what there is says nothing.
    rows = [{"one"} if n % 2 else {"other"} for n in range(400)]
    chance = Chance(rows, [n % 20 > 1 for n in range(400)])
    assert chance({"one"}) == pytest.approx(0.5, abs=1e-3)
    assert chance({"never seen"}) == pytest.approx(0.5, abs=1e-3)
    # It happens in 18 of 20 rows of one kind and in 9 of 20 of the other.
    happened = [n % 40 > 3 if n % 2 else n % 40 < 18 for n in range(4000)]
    chance = Chance([{"one"} if n % 2 else {"other"} for n in range(4000)], happened)
    shares = {"one": 18 / 20, "other": 9 / 20}
    even = np.mean(list(shares.values()))
    for word, share in shares.items():
        weighed = share / even / (share / even + (1 - share) / (1 - even))
        assert chance({word}) == pytest.approx(weighed, abs=0.02)
    assert Chance(rows, [True] * 400)({"one"}) == Chance([], [])({"one"}) == 0.5


# The unseen judge shares no evidence with the one that taught the critic.


@pytest.mark.parametrize("share", [2, 5, 8])
def test_to_name_a_film_is_no_evidence_by_itself(share):
    """Where people name films in eight of ten places, whatever was said, to name one is no merit."""
    asked = ["I like comedies.", "Any idea?", "I saw <movie>.", "Hello!", "What else is there?"]
    rows = [
        Answered(
            (Turn("seeker", asked[n % 5], ()),),
            f"You should try {'<movie>' if n // 5 % 10 < share else 'that one'}.",
            n % 7,
        )
        for n in range(400)
    ]
    judge = Unseen(rows[:200], rows[200:])
    for row in rows[:5]:
        assert judge.names_film(row.context) == pytest.approx(0.5, abs=0.01)


def test_to_name_films_where_people_do_is_evidence(held_out, judges):
    """Who always, or never, names one has less than people, and less than chance would give."""
    named = np.array(["<movie>" in request.gold for request in held_out])
    assert 0.3 < named.mean() < 0.8
    chance = np.array([judges["unseen"].names_film(request.context) for request in held_out])
    people = np.where(named, chance, 1 - chance)
    assert people.mean() > 0.65
    assert people.mean() > max(chance.mean(), 1 - chance.mean()) + 0.1


def test_an_adversary_of_the_rules_gains_nothing_unseen(held_out, judges, world):
    """In each turn the response of people that `rules` finds to recommend best, of those with a film."""
    pool = [
        turn.text
        for dialogue in world.split("train")[:60]
        for turn in dialogue.turns[1:]
        if turn.role == "recommender" and "<movie>" in turn.text
    ][:60]

    def score(name, texts):
        cases = [
            Case(request.context, text, request.recommended)
            for request, text in zip(held_out, texts, strict=True)
        ]
        scores = [judges[name](case) for case in cases]
        return np.array([[one["recommendation"], one["overall"]] for one in scores])

    best = [
        max(
            pool,
            key=lambda text: judges["rules"](Case(request.context, text, request.recommended))[
                "recommendation"
            ],
        )
        for request in held_out
    ]
    golds = [request.gold for request in held_out]
    gains = {name: score(name, best) - score(name, golds) for name in judges}
    none = np.array(["<movie>" not in gold for gold in golds])
    assert gains["rules"].mean(axis=0).min() > 0.1
    assert gains["unseen"].mean(axis=0).max() < 0.01
    # Worst where people named no film, which is where the rules gain most.
    assert gains["rules"][none].mean(axis=0).min() > 0.2
    assert gains["unseen"][none].mean(axis=0).max() < -0.1


def test_more_films_marks_and_titles_are_no_evidence_of_the_unseen_judge(judges, held_out):
    unseen, compared = judges["unseen"], 0
    for request in held_out:
        if "<movie>" not in request.gold:
            continue
        case = Case(request.context, request.gold, request.recommended)
        more = request.gold.replace("<movie>", "<movie>, <movie>", 1).replace("?", "!")
        plain, other = unseen(case), unseen(case._replace(text=more))
        assert unseen(case._replace(titles=())) == plain
        # All that differs is how sound they are, which all heads have as a factor.
        for head in ("empathy", "engagement"):
            expected = plain[head] * other["recommendation"]
            assert other[head] * plain["recommendation"] == pytest.approx(expected, abs=1e-9)
        compared += plain["recommendation"] > 0 and other["recommendation"] > 0
    assert compared > 5
