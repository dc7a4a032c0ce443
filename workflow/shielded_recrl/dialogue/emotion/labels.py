"""The nine emotions of a turn, and which of the 28 labels of GoEmotions speak for which.

In: numbers of GoEmotions' labels. Out: places among the nine, those of ECR (Zhang et al. 2024). Why
each goes where it goes is in docs/dialogue_emotions.md; none was moved for a better score.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

EMOTIONS = (
    "like",
    "curious",
    "happy",
    "grateful",
    "negative",
    "neutral",
    "nostalgia",
    "agreement",
    "surprise",
)
# Labels of GoEmotions (Demszky et al. 2020) in the order of their numbers; none is nostalgia.
SPEAKS_FOR = {
    "admiration": "like",
    "amusement": "happy",
    "anger": "negative",
    "annoyance": "negative",
    "approval": "agreement",
    "caring": "like",
    "confusion": "curious",
    "curiosity": "curious",
    "desire": "like",
    "disappointment": "negative",
    "disapproval": "negative",
    "disgust": "negative",
    "embarrassment": "negative",
    "excitement": "happy",
    "fear": "negative",
    "gratitude": "grateful",
    "grief": "negative",
    "joy": "happy",
    "love": "like",
    "nervousness": "negative",
    "optimism": "happy",
    "pride": "happy",
    "realization": "surprise",
    "relief": "happy",
    "remorse": "negative",
    "sadness": "negative",
    "surprise": "surprise",
    "neutral": "neutral",
}
GOEMOTIONS = tuple(SPEAKS_FOR)
PLACES = tuple(EMOTIONS.index(emotion) for emotion in SPEAKS_FOR.values())
NOSTALGIA = EMOTIONS.index("nostalgia")
# What a classifier can learn from GoEmotions.
LEARNED = tuple(place for place in range(len(EMOTIONS)) if place in PLACES)


def emotions_of(labels: Iterable[int]) -> np.ndarray:
    """Which of the nine a comment shows, bool [9].

    Labels that speak for the same emotion count once, and neutral beside others counts as they do:
    raters differed.

    >>> [EMOTIONS[place] for place in np.flatnonzero(emotions_of([0, 18, 27]))]
    ['like', 'neutral']
    """
    found = np.zeros(len(EMOTIONS), dtype=bool)
    found[[PLACES[label] for label in labels]] = True
    return found
