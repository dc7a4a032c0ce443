"""The embedded base LM of the plain RLHF loop: a small Llama that writes short reviews.

Its corpus is generated: an opening such as "The film was" and what follows, in a positive, a
neutral or a negative tone, each as often as the others. So the LM is readable, has no opinion of
its own, and leaves a reward room to move it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from shielded_recrl.explainer.settings import PretrainSettings
from shielded_recrl.files import sealed
from shielded_recrl.provenance import code_digest
from shielded_recrl.resume import fingerprint

SETTINGS = PretrainSettings(
    vocabulary=768,
    hidden_size=64,
    layers=2,
    heads=4,
    steps=900,
    batch_size=32,
    learning_rate=6e-3,
    canaries=0,
)
SEED = 0
TONES = ("positive", "neutral", "negative")
# Texts the tokenizer is trained on.
CORPUS = 4000
# Shares of texts: a second description, a closing sentence, and one in the tone of the first.
SECOND, CLOSING, SAME_TONE = 0.5, 0.5, 0.8

# What a response goes on from; the first ten are shown before and after training.
PROMPTS = (
    "The film was",
    "I read the book and",
    "For me the show was",
    "We played the game and",
    "My sister said the album was",
    "I saw the play and",
    "After an hour the story was",
    "She heard the album and",
    "I thought the music was",
    "They watched the film and",
    "The ending was",
    "We went to the show and",
    "For me the book was",
    "He finished the story and",
    "After an hour the play was",
    "She played the game and",
    "My sister said the film was",
    "They read the book and",
    "I thought the game was",
    "He watched the show and",
    "The album was",
    "We heard the music and",
    "For me the ending was",
    "I went to the play and",
)

WORDS = {
    "positive": (
        *("wonderful", "excellent", "brilliant", "beautiful", "charming", "funny", "clever"),
        *("great", "lovely", "delightful", "amazing", "superb", "good", "nice", "warm"),
    ),
    "neutral": (
        *("long", "short", "quiet", "slow", "simple", "about a small town", "in two parts"),
        *("new to most of us", "longer than the last one", "over before ten", "much as expected"),
        *("like many others", "set by the sea", "from last year", "full of names"),
    ),
    "negative": (
        *("terrible", "awful", "boring", "dull", "weak", "bad", "horrible", "poor", "sad"),
        *("annoying", "disappointing", "ugly", "stupid", "lame", "painful"),
    ),
}
DEGREES = ("", "", "", "very ", "quite ", "rather ", "really ", "a little ")
DEEDS = {
    "positive": (
        *("loved every minute of it", "laughed until the end", "felt happy for days"),
        *("wanted to share it with friends", "enjoyed it a lot", "smiled all the way home"),
        *("liked it more than the last one", "found it {} and {}"),
    ),
    "neutral": (
        *("went home after it", "talked about it on the train", "put it back on the shelf"),
        *("made a cup of tea", "waited for the next one", "thought about it for a while"),
        *("told a neighbour about it", "found it much as expected"),
    ),
    "negative": (
        *("hated every minute of it", "felt angry at the end", "regretted the whole evening"),
        *("fell asleep from boredom", "wanted the money back", "complained all the way home"),
        *("disliked it more than the last one", "found it {} and {}"),
    ),
}
CLOSINGS = {
    "positive": (
        *("I would recommend it to everyone.", "It is a treasure for the whole family."),
        *("It won my heart.", "I would gladly go back to it.", "The best one this year."),
    ),
    "neutral": (
        *("It came out in the spring.", "There are two more parts.", "It takes about an hour."),
        *("I had seen the poster.", "The next one is on its way."),
    ),
    "negative": (
        *("I would not recommend it to anyone.", "It is a waste of time and money."),
        *("Please avoid it.", "There is nothing to like here.", "The worst one this year."),
    ),
}


def review(rng: random.Random) -> tuple[str, str]:
    """An opening, and what follows it."""
    opening, tone = rng.choice(PROMPTS), rng.choice(TONES)
    if opening.endswith(" and"):
        text = rng.choice(DEEDS[tone]).format(*rng.sample(WORDS[tone], 2))
    else:
        first, second = rng.sample(WORDS[tone], 2)
        text = (rng.choice(DEGREES) if tone != "neutral" else "") + first
        if rng.random() < SECOND:
            text += f" and {second}"
    text += "."
    if rng.random() < CLOSING:
        other = tone if rng.random() < SAME_TONE else rng.choice(TONES)
        text += f" {rng.choice(CLOSINGS[other])}"
    return opening, text


def reviews(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless reviews."""
    while True:
        yield review(rng)


def embedded_base(folder: Path, settings: PretrainSettings = SETTINGS) -> Path:
    """The embedded base LM, trained where it is not there yet.

    Args:
        folder: where it is kept, under a name that tells its settings and the code behind it.
        settings: its size and training.

    Returns:
        A folder in transformers format.
    """
    code = code_digest("shielded_recrl.rl.reviews")
    name = fingerprint({"code": code, "settings": settings.model_dump(), "seed": SEED})[:12]
    path = folder / f"embedded-{name}"
    if not path.is_dir():
        train_base(path, settings)
    return path


def train_base(path: Path, settings: PretrainSettings) -> None:
    """Train tokenizer and LM on reviews, and write them."""
    from shielded_recrl.explainer.pretrain import (
        Example,
        batches,
        new_model,
        train,
        train_tokenizer,
    )

    rng = random.Random(SEED)
    texts = (" ".join(parts) for parts in islice(reviews(rng), CORPUS))
    tokenizer = train_tokenizer(texts, settings.vocabulary)

    def examples() -> Iterator[Example]:
        for parts in reviews(rng):
            ids = tokenizer.encode(" ".join(parts), add_special_tokens=False)
            yield Example((*ids, tokenizer.eos_token_id), (0.0, *[1.0] * len(ids)))

    with torch.random.fork_rng():
        model = new_model(tokenizer, settings, SEED)
    train(model, batches(examples(), settings.batch_size, rng), settings)
    with sealed(path) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
