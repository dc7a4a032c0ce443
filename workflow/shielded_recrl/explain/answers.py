"""What a user is served: history, ranked items, an explanation each, and the claims in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Role = Literal["train", "protected", "heldout", "none"]


@dataclass(frozen=True)
class Claim:
    """A title or category of the catalogue that an explanation names.

    Attributes:
        text: as it is written.
        start, end: where it stands, in characters of the explanation.
        supported: whether the metadata of the item and of the history bears it out.
    """

    text: str
    start: int
    end: int
    supported: bool


@dataclass(frozen=True)
class Thing:
    """An item of the catalogue."""

    item: int
    source_id: str
    title: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Past:
    """An item of the history; `named` ones stand in the prompt the language model reads."""

    thing: Thing
    named: bool


@dataclass(frozen=True)
class Recommendation:
    """A ranked item and its explanation.

    Attributes:
        position: from 1.
        thing: the item.
        ranker_score: <s(u), e(i)>.
        lm_score: gamma <W h(u; D), e(i)>.
        score: their sum, which the list is sorted by.
        in_test: whether the user's test split, which no training saw, holds the item.
        explanation: as sampled.
        ended: whether the text ended before it reached the longest length.
        claims: in the order of the text.
    """

    position: int
    thing: Thing
    ranker_score: float
    lm_score: float
    score: float
    in_test: bool
    explanation: str
    ended: bool
    claims: tuple[Claim, ...]

    def pieces(self) -> Iterator[tuple[str, Claim | None]]:
        """The explanation cut at its claims; joined, the pieces are the text."""
        end = 0
        for claim in self.claims:
            if claim.start > end:
                yield self.explanation[end : claim.start], None
            yield claim.text, claim
            end = claim.end
        if end < len(self.explanation):
            yield self.explanation[end:], None


@dataclass(frozen=True)
class Person:
    """A user: dense id, id of the source, part in the study, and number of past items."""

    user: int
    source_id: str
    role: Role
    items: int


@dataclass(frozen=True)
class Answer:
    """What one run serves one user.

    Attributes:
        dataset, synthetic, sequential: the dataset, whether it is made up, and whether its
            histories have an order.
        variant, seed, shield: the run, and its kind of shield.
        gamma: weight of the language model in the ranking.
        temperature, top_p: of the sampling of explanations.
        person: who is served.
        history: oldest first.
        recommendations: best first.
    """

    dataset: str
    synthetic: bool
    sequential: bool
    variant: str
    seed: int
    shield: str
    gamma: float
    temperature: float
    top_p: float
    person: Person
    history: tuple[Past, ...]
    recommendations: tuple[Recommendation, ...]


def moves(left: Answer, right: Answer) -> list[int | None]:
    """Places each item of `right` has gained over `left`; None for one that `left` does not list."""
    place = {one.thing.item: one.position for one in left.recommendations}
    return [
        place[one.thing.item] - one.position if one.thing.item in place else None
        for one in right.recommendations
    ]
