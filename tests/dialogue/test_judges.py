"""The judges: bounded, fond of no trick, in the known order, and each with evidence of its own."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from chat_server import completion, listening
from shielded_recrl.dialogue import make, prepare
from shielded_recrl.dialogue.corpus.dialogues import Dialogues, Turn
from shielded_recrl.dialogue.critique.agreement import agreement
from shielded_recrl.dialogue.critique.judged import SAMPLED, columns, load_judged, save_judged
from shielded_recrl.dialogue.judge import judged, responses
from shielded_recrl.dialogue.judge import main as judge_command
from shielded_recrl.dialogue.judges import words as lexicon
from shielded_recrl.dialogue.judges.base import HEADS, read
from shielded_recrl.dialogue.judges.counts import Likeness, Trigrams, word_effects
from shielded_recrl.dialogue.judges.rules import (
    Rules,
    built,
    in_order,
    in_place,
    of_its_own,
    varied,
)
from shielded_recrl.dialogue.judges.unseen import Unseen
from shielded_recrl.dialogue.response.corrupt import FAULTS
from shielded_recrl.dialogue.response.prompts import ResponseRequest, spread
from shielded_recrl.dialogue.settings import (
    DialogueWorldSettings,
    JudgeSettings,
    ResponsePromptSettings,
)
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.provenance import import_closure
from tiny_dialogues import write_dialogues
from tiny_world import save_model, tiny_llama, with_adapter

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
    return judge(request.context, text, request.recommended)["overall"]


@pytest.mark.parametrize("name", ["rules", "unseen"])
@pytest.mark.parametrize("text", ["", "  ", "\n", "?! ... ,", "~~"])
def test_nothing_has_nothing(judges, held_out, name, text):
    found = judges[name](held_out[0].context, text, TITLES)
    assert found == dict.fromkeys(HEADS, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("aeIi <movie>?!.,'\n19(é王")), st.integers(0, 3))
def test_scores_are_bounded_whatever_is_said(text, shown):
    for judge in (Rules(["The Heat (1995)"]), _small_unseen()):
        found = judge([SEEKER], text, TITLES[:shown], gold=HELPFUL)
        assert tuple(found) == HEADS
        assert all(0 <= score <= 1 for score in found.values())


def _small_unseen(_made=[]):  # noqa: B006
    if not _made:
        from shielded_recrl.dialogue.judges.unseen import Answered

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
    judge = Rules()
    said = judge([SEEKER], HELPFUL, TITLES)
    cold = judge([SEEKER], "Have you seen <movie>? It is a hilarious comedy.", TITLES)
    assert said["empathy"] > cold["empathy"]
    bare = judge([SEEKER], "Sorry to hear that! Have you seen <movie>?", TITLES)
    assert said["informativeness"] > bare["informativeness"]
    none = judge([SEEKER], "Sorry to hear that! It is a hilarious comedy.", TITLES)
    assert said["recommendation"] > none["recommendation"]
    assert said["recommendation"] > judge([SEEKER], HELPFUL, [])["recommendation"]
    flat = judge(
        [SEEKER], "Sorry to hear that! There is <movie>. It is a hilarious comedy.", TITLES
    )
    assert said["engagement"] > flat["engagement"]
    assert said["overall"] == pytest.approx(np.mean([said[head] for head in HEADS[:-1]]))
    # Another genre than the one asked for is beside the point.
    asked = [Turn("seeker", "I love horror movies.", ())]
    right, wrong = (
        judge(asked, f"Then try <movie>, a very creepy {genre} from Spain.", TITLES)
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
    said = [Rules()(context, "Hello! I like those too.", []) for context in ([hello], middle)]
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
    slot = judge(asked, text.format("<movie>"), TITLES)
    known = judge(asked, text.format("the long goodbye"), TITLES)
    assert known["recommendation"] < 0.2 * slot["recommendation"]
    assert known["overall"] < slot["overall"]
    # Of known films one is called It; that is a word.
    other = judge(asked, text.format("anything at all"), TITLES)
    assert other["overall"] > known["overall"]


def test_moods():
    assert lexicon.mood("Hello there") == "greeting"
    assert lexicon.mood("") == "greeting"
    assert lexicon.mood("It was awful and boring") == "negative"
    assert set(lexicon.REACTIONS) >= set(lexicon.EMOTIONS)


def test_the_gold_response_is_evidence_of_the_unseen_judge_alone(judges, held_out):
    request = max(held_out, key=lambda one: len(one.gold))
    unseen, rules = judges["unseen"], judges["rules"]
    asked = (request.context, request.gold, request.recommended)
    assert unseen(*asked, gold=request.gold)["empathy"] > unseen(*asked, gold="Ok")["empathy"]
    assert rules(*asked, gold=request.gold) == rules(*asked, gold="Ok") == rules(*asked)


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
        asked = (request.context, request.gold, request.recommended)
        assert again(*asked) == judges["unseen"](*asked)


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
    texts = [" ".join(rng.choice(["up", "down", "aside"], 2)) for _ in range(400)]
    values = [text.count("up") - text.count("down") for text in texts]
    found = word_effects(texts, values)
    assert found["up"] > 0.5 > abs(found["aside"])
    assert found["down"] < -0.5
    assert word_effects(["one", "two"], [1, 2]) == {}


# The command.


ANSWER = "\n".join(f"{head}: 4" for head in HEADS)


def test_the_command_judges_every_kind(tmp_path):
    paths = write_dialogues(tmp_path, 40)
    texts = [turn.text for dialogue in Dialogues.load(paths.data).all for turn in dialogue.turns]
    tokenizer = train_tokenizer(iter(texts), 300)
    model = tiny_llama(len(tokenizer))
    base = save_model(model, tokenizer, tmp_path / "base")
    save_adapter(with_adapter(model), tmp_path / "adapter")

    def run(name, url):
        judge_command(
            inputs=paths.inputs(base, ResponsePromptSettings(prompt_tokens=64), response_tokens=8),
            adapter=tmp_path / "adapter",
            out=tmp_path / f"{name}.parquet",
            settings=JudgeSettings(
                train_turns=20, valid_turns=6, test_turns=8, models=("judge",), url=url
            ),
        )
        return load_judged(tmp_path / f"{name}.parquet")

    with listening() as serving:
        serving.reply = lambda body: (200, {}, completion(ANSWER))
        table = run("one", serving.url)
        asked = len(serving.asked)
        run("two", serving.url)
    assert len(serving.asked) == 2 * asked
    kinds = Counter(table["kind"])
    assert kinds["gold"] == kinds["sampled"] == kinds["corrupted:empty"] == 34
    assert set(kinds) == {"gold", "sampled", *(f"corrupted:{how}" for how in FAULTS)}
    train = table.filter(pl.col("split") == "train")
    assert train["unseen_overall"].null_count() == len(train)
    others = table.filter(pl.col("split") != "train")
    assert (
        not others.select(columns("unseen") + columns("rules") + columns("judge"))
        .null_count()
        .sum_horizontal()
        .sum()
    )
    dialogues = Dialogues.load(paths.data)
    for dialogue, turn, text in (
        table.filter(pl.col("kind") == "gold").select("dialogue", "turn", "text").iter_rows()
    ):
        assert dialogues.all[dialogue].turns[turn].text == text
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_damaged_tables_are_one_line(tmp_path, table):
    path = tmp_path / "judged.parquet"
    with pytest.raises(UserError, match=r"no such file; make it with .*judge"):
        load_judged(path)
    save_judged(path, table)
    assert load_judged(path).equals(table)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        load_judged(path)
    for wrong, message in (
        (table.drop("kind"), "expected column 'kind'"),
        (table.drop("rules_empathy"), "expected column 'rules_empathy'"),
        (table.with_columns(rules_overall=pl.lit(1.5, pl.Float32)), "no number in \\[0, 1\\]"),
        (table.with_columns(rules_overall=pl.lit(math.nan, pl.Float32)), "no number in"),
        (table.drop(*columns("rules"), *columns("unseen")), "no column of a judge"),
    ):
        wrong.write_parquet(path)
        with pytest.raises(UserError, match=message):
            load_judged(path)
    path.write_text("no parquet")
    with pytest.raises(UserError, match="not a whole parquet file"):
        load_judged(path)
