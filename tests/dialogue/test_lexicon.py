"""Emotions by a list of words."""

import pytest

from shielded_recrl.dialogue.emotion import lexicon
from shielded_recrl.dialogue.emotion.labels import EMOTIONS


def place(name: str) -> int:
    return EMOTIONS.index(name)


@pytest.mark.parametrize(
    ("text", "emotion"),
    [
        ("I loved <movie>, it is amazing.", "like"),
        ("Who is in it, and what kind of movie is it?", "curious"),
        ("Haha, that one is hilarious!", "happy"),
        ("Thank you so much, I appreciate it.", "grateful"),
        ("That was terrible and boring.", "negative"),
        ("It was not good.", "negative"),
        ("I didn\u2019t really enjoy it.", "negative"),
        ("It is on channel four.", "neutral"),
        ("I grew up with it, what fond memories of my childhood.", "nostalgia"),
        ("Exactly, I agree.", "agreement"),
        ("Wow, I had no idea!", "surprise"),
        ("It was not surprising.", "neutral"),
        ("A comedy like <movie>", "neutral"),
    ],
)
def test_cues(text, emotion):
    assert EMOTIONS[int(lexicon.probabilities([text])[0].argmax())] == emotion


def test_cues_are_whole_words():
    # "good" in "goodbye", "ty" in "pretty", "mad" in "made", "ok" in "book".
    assert lexicon.probabilities(["Goodbye, he made a pretty book."])[0, place("neutral")] == 1


def test_two_cues_share():
    found = lexicon.probabilities(["Thanks, I hate it"])[0]
    assert found[place("grateful")] == found[place("negative")] == pytest.approx(0.4)
    assert found[place("neutral")] == pytest.approx(0.2)
    assert lexicon.probabilities([]).shape == (0, 9)


def test_long_texts_take_no_longer_a_word():
    found = lexicon.probabilities(["not good " * 5000, "not good"])
    assert found[0, place("negative")] > found[1, place("negative")]
