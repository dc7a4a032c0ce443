"""Faults: each is what it is called, none where there can be none, the same each time."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.dialogue.response.corrupt import AGAIN, FAULTS, Elsewhere, corruptions
from shielded_recrl.dialogue.response.prompts import ResponseRequest

WORDS = st.lists(
    st.sampled_from(["a", "film", "<movie>", "you", "see", "it?", "Great!"]), max_size=12
)
TITLES = ("Heat (1995)", "Ronin (1998)", "Drive (2011)")


def request(gold, dialogue=0, turn=1):
    return ResponseRequest(dialogue, turn, (), (), TITLES[:1], gold)


ELSEWHERE = Elsewhere([request("Hello there!", 1), request("Another one.", 2)], TITLES)


def faulty(how, gold, turn=1, seed=0, elsewhere=ELSEWHERE):
    return next(iter(corruptions(how, request(gold, turn=turn), elsewhere, seed, 1)), None)


@given(WORDS, st.integers(0, 50), st.sampled_from(sorted(FAULTS)))
def test_a_fault_changes_the_text_and_is_the_same_each_time(words, turn, how):
    gold = " ".join(words)
    found = faulty(how, gold, turn)
    assert found == faulty(how, gold, turn)
    assert found is None or found != gold or (how == "empty" and not gold)


@given(st.sampled_from(sorted(FAULTS)), st.integers(0, 50))
def test_more_draws_of_a_fault_add_to_fewer(how, seed):
    asked = request("You may like <movie> a lot, I do.")
    found = [corruptions(how, asked, ELSEWHERE, seed, draws) for draws in range(9)]
    assert found[:2] == [[], [faulty(how, asked.gold, seed=seed)]]
    for fewer, more in pairwise(found):
        assert more[: len(fewer)] == fewer
    assert len(set(found[-1])) == len(found[-1])
    assert len(corruptions("foreign", asked, ELSEWHERE, seed, 40)) == 2


@given(WORDS, st.integers(0, 50))
def test_each_fault_is_what_it_is_called(words, turn):
    gold = " ".join(words)
    assert faulty("empty", gold, turn) == ""
    assert faulty("foreign", gold, turn) in ("Hello there!", "Another one.")
    if (found := faulty("shuffled", gold, turn)) is not None:
        assert Counter(found.split()) == Counter(words)
    if (found := faulty("repeated", gold, turn)) is not None:
        assert len(found.split()) == len(words) + AGAIN * min(3, len(words))
        assert set(found.split()) == set(words)
    if (found := faulty("cut", gold, turn)) is not None:
        assert gold.startswith(found)
        assert 0 < len(found.split()) <= len(words) / 2
    if (found := faulty("titles", gold, turn)) is not None:
        assert "<movie>" not in found
        # Never one that was recommended.
        assert TITLES[0] not in found
        assert found.count("(") == gold.count("<movie>")


@pytest.mark.parametrize(
    ("how", "gold"),
    [
        ("shuffled", "Hi there!"),
        ("shuffled", "no no no no"),
        ("cut", "You are welcome."),
        ("titles", "You are welcome."),
        ("repeated", ""),
    ],
)
def test_what_cannot_have_a_fault_has_none(how, gold):
    assert faulty(how, gold) is None


def test_nothing_comes_from_the_same_dialogue_or_list():
    alone = Elsewhere([request("Mine.", 0), request("Same.", 1)], TITLES[:1])
    assert faulty("foreign", "Same.", elsewhere=alone) is None
    assert faulty("titles", "Try <movie>.", elsewhere=alone) is None
    assert faulty("titles", "Try <movie>.", elsewhere=Elsewhere(alone.requests, ())) is None


def test_seeds_and_turns_draw_apart():
    gold = "one two three four five six seven eight"
    drawn = {faulty("shuffled", gold, turn, seed) for turn in range(4) for seed in range(4)}
    assert len(drawn) == 16
