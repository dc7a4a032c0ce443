"""The judge protocol, and how all judges read a response.

A judge scores one response of the recommender by five heads, each in [0, 1]:

    empathy          it takes up what the seeker feels and says, as a kind person would
    informativeness  it tells the seeker something: content of its own, to the point
    recommendation   it offers films where they are wanted, backed by what was recommended
    engagement       it gives the seeker a reason to go on
    overall          how good it is as a whole

An empty response scores 0 by every head of every judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shielded_recrl.dialogue.corpus.dialogues import SLOT, Turn

HEADS = ("empathy", "informativeness", "recommendation", "engagement", "overall")
TOKEN = re.compile(rf"{re.escape(SLOT)}|[^\W_]+(?:['’][^\W_]+)*|[.!?…]+|[,;:]")
ENDS = frozenset(".!?…")

Scores = dict[str, float]


class Case(NamedTuple):
    """A response to be judged, in its place.

    Attributes:
        context: the turns before, oldest first.
        text: the recommender's turn, `<movie>` for a film.
        titles: of the recommended films; the k-th `<movie>` stands for the k-th.
    """

    context: Sequence[Turn]
    text: str
    titles: Sequence[str] = ()


# A number in [0, 1] for each of `HEADS`.
Judge = Callable[[Case], Scores]


class Reading(NamedTuple):
    """A text in its parts.

    Attributes:
        tokens: words as written, `<movie>`, and marks, in order.
        words: lower-case words, without films and marks.
        slots: number of films.
    """

    tokens: tuple[str, ...]
    words: tuple[str, ...]
    slots: int


def read(text: str) -> Reading:
    """Take a text apart.

    >>> read("Hi! Try <movie>.")
    Reading(tokens=('Hi', '!', 'Try', '<movie>', '.'), words=('hi', 'try'), slots=1)
    """
    found = tuple(TOKEN.findall(text))
    words = tuple(plain(token) for token in found if token != SLOT and token[0].isalnum())
    return Reading(found, words, found.count(SLOT))


def tokens(text: str) -> list[str]:
    """Words in lower case, films and marks, in order."""
    return [plain(token) for token in TOKEN.findall(text)]


def plain(token: str) -> str:
    """A word as lexicons have it."""
    return token.lower().replace("’", "'")


def is_end(token: str) -> bool:
    """Whether a token ends a sentence."""
    return token[0] in ENDS


def nothing() -> Scores:
    """The scores of an empty response."""
    return dict.fromkeys(HEADS, 0.0)


def bounded(value: float) -> float:
    """The nearest number in [0, 1]."""
    return min(max(float(value), 0.0), 1.0)
