"""Responses that are worse than the one a person gave, each by one known fault.

In: requests with their gold responses. Out: the gold response of one with one fault:

    foreign    the response of another dialogue
    shuffled   its words in another order
    repeated   a phrase of it three times more
    cut        its first half, or less
    titles     films that nobody recommended, written out in place of its slots
    empty      nothing

What cannot have a fault gets none: a greeting of two words has hardly another order, a text without
a slot no wrong title. Which phrase, half or film it is depends on the seed and the turn alone.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from shielded_recrl.dialogue.corpus.dialogues import SLOT
from shielded_recrl.dialogue.response.prompts import ResponseRequest

# Words of a phrase that is repeated, and how often it comes again.
PHRASE, AGAIN = 3, 3
# Shorter texts have no half that is worse, and hardly another order.
SHORT = 4
# Draws after which something else than what is there is given up.
TRIES = 20


class Elsewhere(NamedTuple):
    """What faults take from other places: requests of the split, and titles of all films."""

    requests: Sequence[ResponseRequest]
    titles: Sequence[str]


Fault = Callable[[ResponseRequest, random.Random, Elsewhere], str | None]


def foreign(request: ResponseRequest, rng: random.Random, elsewhere: Elsewhere) -> str | None:
    """The response of another dialogue."""
    for _ in range(TRIES):
        other = rng.choice(elsewhere.requests)
        if other.dialogue != request.dialogue and other.gold != request.gold:
            return other.gold
    return None


def shuffled(request: ResponseRequest, rng: random.Random, elsewhere: Elsewhere) -> str | None:
    """The words in another order, the marks with them."""
    words = request.gold.split()
    if len(words) < SHORT:
        return None
    order = rng.sample(words, len(words))
    return None if order == words else " ".join(order)


def repeated(request: ResponseRequest, rng: random.Random, elsewhere: Elsewhere) -> str | None:
    """A phrase comes again and again, where it stands."""
    words = request.gold.split()
    if not words:
        return None
    length = min(PHRASE, len(words))
    start = rng.randrange(len(words) - length + 1)
    return " ".join([*words[:start], *words[start : start + length] * AGAIN, *words[start:]])


def cut(request: ResponseRequest, rng: random.Random, elsewhere: Elsewhere) -> str | None:
    """The beginning."""
    words = request.gold.split()
    if len(words) < SHORT:
        return None
    return " ".join(words[: rng.randint(len(words) // 3, len(words) // 2)])


def wrong_titles(request: ResponseRequest, rng: random.Random, elsewhere: Elsewhere) -> str | None:
    """Films that nobody recommended, written out in place of the slots."""
    if SLOT not in request.gold:
        return None
    first, *rest = request.gold.split(SLOT)
    titles = [_wrong_title(request, rng, elsewhere.titles) for _ in rest]
    if None in titles:
        return None
    return first + "".join(title + after for title, after in zip(titles, rest, strict=True))


def _wrong_title(request: ResponseRequest, rng: random.Random, titles: Sequence[str]) -> str | None:
    drawn = (rng.choice(titles) for _ in range(TRIES if titles else 0))
    return next((title for title in drawn if title not in request.recommended), None)


def empty(request: ResponseRequest, rng: random.Random, elsewhere: Elsewhere) -> str | None:
    """Nothing."""
    return ""


FAULTS: dict[str, Fault] = {
    "foreign": foreign,
    "shuffled": shuffled,
    "repeated": repeated,
    "cut": cut,
    "titles": wrong_titles,
    "empty": empty,
}


def corruptions(
    how: str, request: ResponseRequest, elsewhere: Elsewhere, seed: int, draws: int
) -> list[str]:
    """The gold response of a request with one of `FAULTS`, drawn so many times.

    Each text once, and those of fewer draws first; none where it cannot have the fault.
    """
    # Python's own hash of a text differs from process to process.
    key = f"{seed} {request.dialogue} {request.turn} {how}"
    rng = random.Random(zlib.crc32(key.encode()))
    found = (FAULTS[how](request, rng, elsewhere) for _ in range(draws))
    return list(dict.fromkeys(text for text in found if text is not None))
