"""Rewards of the plain loop, by hand."""

import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.rl.rewards.plain import LengthPenalty, Preference, Sentiment


def score(reward, *texts, prompt="a terrible prompt indeed, thank you"):
    (values,) = reward([prompt] * len(texts), texts, [None] * len(texts)).values()
    assert values.dtype == torch.float32
    assert values.shape == (len(texts),)
    return values.tolist()


def test_sentiment_of_a_published_example():
    """VADER's readme gives this sentence a compound of 0.8316."""
    got = score(Sentiment(), "VADER is smart, handsome, and funny.", "", "the table")
    assert got == pytest.approx([(1 + 0.8316) / 2, 0.5, 0.5])


def test_sentiment_orders_texts_and_reads_no_prompt():
    texts = "I hate this awful film", "a film", "I love this wonderful film"
    bad, plain, good = score(Sentiment(), *texts)
    assert 0 <= bad < plain < good <= 1
    assert score(Sentiment(), *texts, prompt="love love love") == [bad, plain, good]


def test_sentiment_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(UserError, match="pip install vaderSentiment"):
        Sentiment()


def test_phrase_endings():
    reward = Preference(["thank you", "good"], ["not good", "bye"])
    got = score(
        reward,
        "I will. Thank you!",
        "thank you for that",
        "this is good",
        "this is not good",  # the longer phrase decides
        "Goodbye",  # ends in no whole word of a phrase
        "and so bye...",
        "",
        "you",
    )
    assert got == [1, 0, 1, -1, 0, -1, 0, 0]


@pytest.mark.parametrize(
    ("preferred", "dispreferred", "message"),
    [
        ([], [], "no phrase"),
        (["!!"], [], "'!!' has no word"),
        (["Yes"], ["yes!"], "both preferred and dispreferred"),
    ],
)
def test_preference_refuses_useless_phrases(preferred, dispreferred, message):
    with pytest.raises(UserError, match=message):
        Preference(preferred, dispreferred)


def test_length_penalty_by_hand():
    texts = [" ".join(["word"] * count) for count in (0, 4, 5, 8, 30)]
    assert score(LengthPenalty(4), *texts) == [1, 0, 0.25, 1, 1]
    assert score(LengthPenalty(4), "...", "word") == [1, 0]
    with pytest.raises(UserError, match="at least 1 word, got 0"):
        LengthPenalty(0)
