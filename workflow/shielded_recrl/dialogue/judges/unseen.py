"""A judge that no critic and no reward sees: statistics of what people answered in the train split.

It has no lexicon and no rule about questions, capitals or films; docs/dialogue_rl.md sets it beside
`rules`. Half of the train dialogues teach it to count, the other half tells what is ordinary, so that
a person's response is held out from the counts that it is the scale of. Of a response it asks

    natural    how likely its words are in their order, to its very end, by a trigram model of
               responses with Witten and Bell's (1991) smoothing
    new        by how much zlib's account of the dialogue grows with it: repeating oneself or the
               other costs no bytes
    answering  how near its words are to what was answered to the seekers' turns most like this one
    telling    how much its words tell (-log2 of the share of responses that have them)
    moving     how much seekers write after responses of such words, where they write again, by ridge
               regression

and gives the share of people's responses that have less: 0.5 is ordinary. Last it asks

    fitting    whether a person would name a film there: the probability p by a logistic model of what
               was said before, p where the response names one and 1 - p where it names none

The heads:

    empathy = sound * answering             informativeness = sound * telling
    recommendation = sound * fitting        engagement = sound * moving
    overall = the mean of the four          sound = natural * new

A film is worth nothing by itself: both outcomes weigh the same in the logistic model, so that naming
one everywhere is right no more often than naming none. Neither films nor marks are words here, and
the titles recommended are not read.

In: a `base.Case`. Out: scores of five heads.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np

from shielded_recrl.dialogue.corpus.dialogues import RECOMMENDER, SEEKER, Dialogue, Turn
from shielded_recrl.dialogue.judges.base import Case, Scores, bounded, nothing, read, tokens
from shielded_recrl.dialogue.judges.counts import Chance, Likeness, Trigrams, word_effects
from shielded_recrl.errors import UserError

# Turns of the seeker that count as most like one.
NEIGHBOURS = 25
# Responses that are counted, and that the scale is taken from, at the most.
COUNTED, SCALED = 20_000, 2_000
# Fewer teach nothing.
FEWEST = 20
# Places of people's responses from which a text is natural, and new, enough.
ENOUGH = {"natural": 0.5, "new": 0.2}
# What texts of the same length are the scale of.
BY_LENGTH = ("natural", "new", "telling")
# Lengths that the scale tells apart.
LENGTHS = 6
# Turns and films so far beyond which more are all the same.
MANY_TURNS, MANY_FILMS = 12, 6


class Answered(NamedTuple):
    """A response, the turns before it, and how many words the seeker wrote next, if any."""

    context: tuple[Turn, ...]
    text: str
    next_words: int | None


class Unseen:
    """The judge that settles comparisons. A `Judge`; made by `fit`."""

    def __init__(self, counted: Sequence[Answered], scale: Sequence[Answered]) -> None:
        """
        Args:
            counted: responses that teach the counts.
            scale: responses that tell what is ordinary.
        """
        self._order = Trigrams(answered.text for answered in counted)
        self._replies = Likeness([answered.text for answered in counted])
        self._asked = Likeness([_last(answered.context) for answered in counted])
        self._offer = Chance(
            [circumstances(one.context) for one in counted],
            [read(one.text).slots > 0 for one in counted],
        )
        having = Counter(word for one in counted for word in set(read(one.text).words))
        self._bits = {word: math.log2((len(counted) + 1) / n) for word, n in having.items()}
        self._most_bits = math.log2(len(counted) + 1)
        went_on = [one for one in counted if one.next_words is not None]
        self._moves = word_effects(
            [set(read(one.text).words) for one in went_on],
            [math.log1p(one.next_words) for one in went_on],
        )
        self._near = lru_cache(4096)(self._near_to)
        lengths = [len(tokens(one.text)) for one in scale]
        self._bounds = np.unique(np.percentile(lengths, np.linspace(0, 100, LENGTHS + 1)[1:-1]))
        measured = [self._measure(one.context, one.text) for one in scale]
        self._scale = {
            name: np.sort([measures[name] for measures in measured])
            for name in ("answering", "telling", "moving")
        }
        bucket = np.searchsorted(self._bounds, lengths)
        for name in BY_LENGTH:
            values = np.array([measures[name] for measures in measured])
            for number in range(len(self._bounds) + 1):
                self._scale[f"{name} {number}"] = np.sort(values[bucket == number])

    @classmethod
    def fit(cls, train: Iterable[Dialogue]) -> Self:
        """Learn from the dialogues of the train split.

        Raises:
            UserError: there are hardly any responses.
        """
        halves: tuple[list[Answered], list[Answered]] = ([], [])
        for number, dialogue in enumerate(train):
            halves[number % 2].extend(answers(dialogue))
        if min(map(len, halves)) < FEWEST:
            raise UserError(
                f"unseen judge: {sum(map(len, halves))} responses of people in the train split, "
                f"expected at least {2 * FEWEST}; give more dialogues"
            )
        return cls(_spread(halves[0], COUNTED), _spread(halves[1], SCALED))

    def __call__(self, case: Case) -> Scores:
        """Score a response."""
        said = read(case.text)
        if not said.words and not said.slots:
            return nothing()
        measures = self._measure(case.context, case.text)
        number = int(np.searchsorted(self._bounds, len(said.tokens)))
        sound = math.prod(
            min(1.0, self._place(f"{name} {number}", measures[name]) / enough)
            for name, enough in ENOUGH.items()
        )
        answering = self._place("answering", measures["answering"])
        # A long text has to tell more than a short one, and a short one as much as others.
        telling = min(
            self._place(name, measures["telling"]) for name in ("telling", f"telling {number}")
        )
        likely = self.names_film(case.context)
        scores = {
            "empathy": sound * answering,
            "informativeness": sound * telling,
            "recommendation": sound * (likely if said.slots else 1 - likely),
            "engagement": sound * self._place("moving", measures["moving"]),
        }
        scores = {head: bounded(score) for head, score in scores.items()}
        return {**scores, "overall": sum(scores.values()) / len(scores)}

    def names_film(self, context: Sequence[Turn]) -> float:
        """Probability that a person would name a film after these turns, were it as common as to name none."""
        return self._offer(circumstances(context))

    def _measure(self, context: Sequence[Turn], response: str) -> dict[str, float]:
        words = set(read(response).words)
        centre = self._near(_last(context))
        vector = self._replies.vector(response)
        return {
            "natural": -self._order.surprisal(response),
            "new": _growth(context, response),
            "answering": sum(weight * centre.get(term, 0.0) for term, weight in vector.items()),
            "telling": sum(self._bits.get(word, self._most_bits) for word in sorted(words)),
            "moving": sum(self._moves.get(word, 0.0) for word in sorted(words)),
        }

    def _near_to(self, asked: str) -> Counter[str]:
        """The sum of the responses to the turns most like this one."""
        centre: Counter[str] = Counter()
        for row in self._asked.nearest(asked, NEIGHBOURS):
            centre.update(self._replies.rows[row])
        return centre

    def _place(self, name: str, value: float) -> float:
        """Share of people's responses that have less, those that have as much by half."""
        values = self._scale[name]
        if not len(values):
            return 0.0
        below = np.searchsorted(values, value, "left") + np.searchsorted(values, value, "right")
        return float(below / 2 / len(values))


def answers(dialogue: Dialogue) -> list[Answered]:
    """The recommender's responses to what came before."""
    found = []
    for place, turn in enumerate(dialogue.turns):
        if place and turn.role == RECOMMENDER:
            following = dialogue.turns[place + 1 : place + 2]
            next_words = len(read(following[0].text).words) if following else None
            found.append(Answered(dialogue.turns[:place], turn.text, next_words))
    return found


def circumstances(context: Sequence[Turn]) -> set[str]:
    """What a person goes by who names a film or not: the last turn of each, turns and films so far."""
    found = {
        f"turns {min(len(context), MANY_TURNS)}",
        f"films {min(sum(read(turn.text).slots for turn in context), MANY_FILMS)}",
    }
    for role in (SEEKER, RECOMMENDER):
        found |= {f"{role}: {token}" for token in tokens(_last(context, role))}
    return found


def _last(context: Sequence[Turn], role: str = SEEKER) -> str:
    """What the seeker, or the other, said last."""
    return next((turn.text for turn in reversed(context) if turn.role == role), "")


def _growth(context: Sequence[Turn], response: str) -> float:
    """Bytes by which the packed dialogue grows, a byte of the response."""
    before = "\n".join(turn.text for turn in context).lower().encode()
    text = response.lower().encode()
    return (_packed(before + b"\n" + text) - _packed(before)) / len(text)


@lru_cache(4096)
def _packed(text: bytes) -> int:
    return len(zlib.compress(text, 9))


def _spread(rows: list[Answered], most: int) -> list[Answered]:
    """At most so many of the rows, from all over."""
    step = len(rows) / most
    return rows if step <= 1 else [rows[int(place * step)] for place in range(most)]
