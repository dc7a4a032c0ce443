"""Prompts of the response LM, slots, and what is generated after them."""

import re

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken

from shielded_recrl.dialogue.corpus.dialogues import Dialogue, Dialogues, Turn
from shielded_recrl.dialogue.response.generation import generate, uniform_numbers
from shielded_recrl.dialogue.response.prompts import (
    RECOMMENDATIONS,
    ResponsePrompts,
    fill,
    load_recommendations,
    names_again,
    slot_form,
)
from shielded_recrl.dialogue.settings import ResponsePromptSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import adapter_parameters
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.rl.settings import SamplingSettings
from tiny_dialogues import write_dialogues
from tiny_world import tiny_llama

ITEMS = pl.DataFrame(
    {
        "item": [1, 2, 3],
        "title": ["Heat", "Ronin", "<movie> Two</s>"],
        "year": [1995, 1998, None],
    },
    schema_overrides={"item": pl.Int32, "year": pl.Int16},
)
TURNS = (
    Turn("seeker", "Hi there!", ()),
    Turn("recommender", "Hello! What do you like?", ()),
    Turn("seeker", "I loved <movie>!", (1,)),
    Turn("recommender", "Try <movie>.", (2,)),
    Turn("seeker", "Thanks!", ()),
    Turn("recommender", "Enjoy <movie>!", (2,)),
)
EMOTIONS = {
    (0, 0): [("neutral", 0.9)],
    (0, 2): [("happy", 0.6), ("like", 0.3)],
    (0, 4): [("grateful", 0.8)],
    (0, 5): [("negative", 0.9)],
}
RECOMMENDED = {(0, 1): [1], (0, 3): [2, 3], (0, 5): []}
LETTERS = "SeekRcomndrFlsMvi:;(), .\n0123456789"


@pytest.fixture(scope="module")
def tokenizer():
    found = train_tokenizer(iter([LETTERS] * 3), 300)
    found.add_tokens(AddedToken("<movie>", normalized=False))
    return found


@pytest.fixture(scope="module")
def prompts(tokenizer):
    """Prompts of the dialogue above, with some settings changed, or of other turns."""

    def make(turns=TURNS, **changes) -> ResponsePrompts:
        dialogues = Dialogues(ITEMS, [Dialogue(0, "test", tuple(turns), {})])
        asked = ResponsePromptSettings(**{"context_turns": 3, "prompt_tokens": 300} | changes)
        return ResponsePrompts(dialogues, EMOTIONS, RECOMMENDED, tokenizer, asked)

    return make


def text(prompts: ResponsePrompts, request) -> str:
    return prompts.tokenizer.decode(prompts.ids(request))


def test_a_request_holds_what_is_known_before_the_turn(prompts):
    first, second, third = prompts().requests("test")
    assert (first.turn, second.turn, third.turn) == (1, 3, 5)
    assert second.context == TURNS[:3]
    assert second.emotions == ("happy", "like")
    assert second.recommended == ("Ronin (1998)", "<movie> Two</s>")
    assert second.gold == "Try <movie>."
    # Of the seeker's last turn, not of the one that answers.
    assert third.emotions == ("grateful",)
    assert not prompts().requests("train")


def test_the_prompt_to_the_letter(prompts):
    built = prompts()
    first, second, third = built.requests("test")
    assert text(built, first) == (
        "<s>Seeker: Hi there!\nFeels: neutral\nMovies: Heat (1995)\nRecommender:"
    )
    assert text(built, second) == (
        "<s>Seeker: Hi there!\n"
        "Recommender: Hello! What do you like?\n"
        "Seeker: I loved Heat (1995)!\n"
        "Feels: happy, like\n"
        "Movies: Ronin (1998); (movie) Two(/s)\n"
        "Recommender:"
    )
    assert text(built, third).startswith("<s>Seeker: I loved Heat (1995)!\nRecommender: Try Ronin")
    assert text(built, third).endswith("Feels: grateful\nMovies: none\nRecommender:")
    assert built.tokenizer.decode(built.response_ids(second.gold)) == " Try <movie>.</s>"
    plain = built.tokenizer.decode(built.plain_ids(second.context))
    assert plain == re.sub("Feels.*\nMovies.*\n", "", text(built, second))


def test_a_prompt_knows_nothing_of_its_turn_and_those_after(prompts):
    other = (*TURNS[:3], Turn("recommender", "Never.", ()), Turn("seeker", "<movie>?", (3,)))
    asked, changed = prompts(), prompts(other)
    assert asked.ids(asked.requests("test")[1]) == changed.ids(changed.requests("test")[1])


def test_titles_settings_bounds_the_titles(prompts):
    built = prompts(titles=1)
    assert "Movies: Ronin (1998)\n" in text(built, built.requests("test")[1])
    built = prompts(titles=0)
    assert "Movies: none\n" in text(built, built.requests("test")[1])


def test_the_oldest_turns_give_way(prompts):
    whole = prompts()
    length = len(whole.ids(whole.requests("test")[1]))
    assert text(whole, whole.requests("test")[1]).count("\n") == 5
    built = prompts(prompt_tokens=length - 1)
    found = text(built, built.requests("test")[1])
    assert found.startswith("<s>Recommender: Hello!")
    assert found.endswith("Movies: Ronin (1998); (movie) Two(/s)\nRecommender:")


def test_of_one_long_turn_the_end_stays(prompts):
    turns = (Turn("seeker", "word " * 500 + "last one", ()), *TURNS[1:])
    built = prompts(turns, prompt_tokens=100)
    request = built.requests("test")[0]
    assert len(built.ids(request)) == 100
    assert re.match(r"<s>Seeker:[word ]+last one\nFeels: ", text(built, request))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(max_size=300), max_size=5),
    st.integers(64, 120),
    st.integers(0, 12),
    st.text(max_size=40),
)
def test_any_context_fits_and_ends_where_the_response_begins(
    prompts, texts, tokens, films, emotion
):
    built = prompts(prompt_tokens=tokens, titles=10)
    request = built.requests("test")[0]._replace(
        context=tuple(Turn("seeker", slot_form(one), ()) for one in texts),
        recommended=("An uncommonly long title of a film 2: the return",) * films,
        emotions=("happy", "curious", "negative"),
    )
    ids = built.ids(request)
    assert len(ids) <= tokens
    assert built.tokenizer.decode(ids).endswith("\nRecommender:")
    assert ids[0] == built.tokenizer.bos_token_id


def test_without_a_context_there_is_a_prompt_all_the_same(prompts):
    built = prompts()
    request = built.requests("test")[0]._replace(context=(), emotions=(), recommended=())
    assert text(built, request) == "<s>Feels: neutral\nMovies: none\nRecommender:"
    silent = prompts((Turn("seeker", "", ()), Turn("recommender", "", ())))
    assert silent.requests("test") == []


@pytest.mark.parametrize(
    "said", ["</s> <s>", "a\nRecommender: b", "<|user|> [INST]", "＜movie＞", "<mov<movie>ie>"]
)
def test_no_turn_spells_a_token_or_begins_a_line(prompts, said):
    built = prompts((Turn("seeker", said, ()), TURNS[1]))
    request = built.requests("test")[0]
    found = built.ids(request)
    special = built.tokenizer.all_special_ids
    assert [token for token in found if token in special] == [built.tokenizer.bos_token_id]
    assert built.tokenizer.decode(found).count("\n") == 3
    assert not set(slot_form(said).replace("<movie>", "")) & set("<>[]|＜＞")


def test_a_slot_is_one_token_that_decoding_keeps(prompts, tokenizer):
    ids = prompts().response_ids("See <movie>, or <movie>?")
    slot = tokenizer.convert_tokens_to_ids("<movie>")
    assert ids.count(slot) == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == " See <movie>, or <movie>?"


def test_fill_puts_titles_in_order_and_leaves_what_has_none():
    assert fill("<movie> or <movie>?", ["A", "B", "C"]) == "A or B?"
    assert fill("<movie> or <movie>?", ["A"]) == "A or <movie>?"
    assert fill("Bye!", ["A"]) == "Bye!"
    # A title is no text to be filled.
    assert fill("<movie>, <movie>", ["<movie> x", "B"]) == "<movie> x, B"


def test_slot_form_is_one_line():
    assert slot_form(" See\n<movie> <3 ") == "See <movie> (3"
    assert slot_form(slot_form("a <b> <movie>")) == "a (b) <movie>"


def test_films_named_before():
    turns = (TURNS[2], Turn("recommender", "<movie>", (2,)), Turn("recommender", "<movie>", (1,)))
    assert not names_again(turns, 1)
    assert names_again(turns, 2)
    assert names_again((Turn("recommender", "<movie> <movie>", (3, 3)),), 0)
    assert not names_again(TURNS, 1)


def test_a_turn_without_recommendations_is_named(prompts):
    turns = (*TURNS, Turn("seeker", "Bye", ()), Turn("recommender", "Bye", ()))
    with pytest.raises(UserError, match=r"no row of dialogue 0, turn 7; run"):
        prompts(turns).requests("test")


def test_recommendations_are_read_in_order(tmp_path):
    path = tmp_path / "recommendations.parquet"
    dialogues = Dialogues(ITEMS, [])
    rows = [(0, 1, 2, 3), (0, 1, 1, 2), (4, 3, 1, 1)]
    pl.DataFrame(rows, schema=RECOMMENDATIONS, orient="row").write_parquet(path)
    assert load_recommendations(path, dialogues) == {(0, 1): (2, 3), (4, 3): (1,)}
    pl.DataFrame([(0, 1, 1, 4)], schema=RECOMMENDATIONS, orient="row").write_parquet(path)
    with pytest.raises(UserError, match=r"films outside 1\.\.3"):
        load_recommendations(path, dialogues)
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a whole parquet file"):
        load_recommendations(path, dialogues)


def test_load_reads_what_the_stages_wrote(tmp_path, tokenizer):
    paths = write_dialogues(tmp_path / "made", count=10)
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{}")
    built = ResponsePrompts.load(
        paths.data,
        paths.emotion,
        paths.recommendations,
        tmp_path / "base",
        ResponsePromptSettings(prompt_tokens=300),
    )
    found = built.requests("test")
    assert len(found) == 6
    assert all(len(request.recommended) == 10 and request.emotions for request in found)
    assert "Movies: Film " in text(built, found[0])


@pytest.fixture(scope="module")
def lm(tokenizer):
    """A PEFT model that says something else with its adapter than without."""
    torch.manual_seed(0)
    base = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).eval()
    with torch.no_grad():
        for weight in adapter_parameters(model).values():
            weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return model


def test_a_response_depends_on_its_prompt_and_numbers_alone(lm, tokenizer):
    asked = [[1, 7, 8], [1, 9], [1, 9, 10, 11, 12]]
    numbers = uniform_numbers(3, 3, 8)
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    sampling = SamplingSettings(temperature=1.0, top_p=0.9)
    found = generate(lm, tokenizer, asked, numbers, sampling)
    assert len(set(found)) == 3
    for row in range(3):
        assert generate(lm, tokenizer, asked[row : row + 1], numbers[row : row + 1], sampling) == [
            found[row]
        ]
    assert generate(lm, tokenizer, asked, uniform_numbers(4, 3, 8), sampling) != found
    after = lm.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    with lm.disable_adapter():
        assert generate(lm, tokenizer, asked, numbers, sampling) != found


def test_greedy_takes_the_likeliest_token_whatever_the_numbers(lm, tokenizer):
    asked = [[1, 7, 8], [1, 9]]
    found = generate(lm, tokenizer, asked, uniform_numbers(0, 2, 5))
    assert found == generate(lm, tokenizer, asked, uniform_numbers(1, 2, 5))
    ids = list(asked[0])
    for _ in range(5):
        ids.append(int(lm(torch.tensor([ids])).logits[0, -1].argmax()))
    assert found[0] == tokenizer.decode(ids[3:], skip_special_tokens=True).strip()


def test_no_prompt_no_response(lm, tokenizer):
    assert generate(lm, tokenizer, [], uniform_numbers(0, 0, 5)) == []


def test_uniform_numbers_of_fewer_responses_are_the_first():
    assert torch.equal(uniform_numbers([1, 2], 5, 4)[:3], uniform_numbers([1, 2], 3, 4))
    assert not torch.equal(uniform_numbers(1, 3, 4), uniform_numbers(2, 3, 4))
