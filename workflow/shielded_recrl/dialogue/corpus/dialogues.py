"""Prepared dialogues as all later stages read them.

In: the folder that `prepare` wrote. Out: dialogues of turns, in which each `<movie>` stands for one
film, and the places at which the recommender named one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

import polars as pl

from shielded_recrl.parquet import read_parquet

# Stands for a film in the text of a turn.
SLOT = "<movie>"
SEEKER, RECOMMENDER = ROLES = ("seeker", "recommender")
SPLITS = ("train", "valid", "test")
# Of `liked`, in answers of a questionnaire.
DISLIKED, LIKED, NOT_SAID = range(3)
SCHEMAS = {
    "dialogues": {"dialogue": pl.Int32, "conversation": pl.String, "split": pl.String},
    "turns": {"dialogue": pl.Int32, "turn": pl.Int16, "role": pl.String, "text": pl.String},
    "mentions": {
        "dialogue": pl.Int32,
        "turn": pl.Int16,
        "position": pl.Int16,
        "item": pl.Int32,
        "is_repeat": pl.Boolean,
    },
    "feedback": {
        "dialogue": pl.Int32,
        "item": pl.Int32,
        "suggested": pl.Boolean,
        "seen": pl.Int8,
        "liked": pl.Int8,
    },
    "items": {
        "item": pl.Int32,
        "movies": pl.List(pl.String),
        "title": pl.String,
        "year": pl.Int16,
        "categories": pl.List(pl.String),
        "mentions": pl.Int32,
    },
}

# A film may have no year.
NULLABLE = ("year",)
# What is recommended in each turn of the recommender, best first.
RECOMMENDATIONS = {
    "dialogue": pl.Int32,
    "turn": pl.Int16,
    "position": pl.Int16,
    "item": pl.Int32,
}
MADE_BY = "python -m shielded_recrl.dialogue prepare"


class Turn(NamedTuple):
    """What one side said until the other spoke.

    Attributes:
        role: seeker or recommender.
        text: its words, with a `SLOT` for each film.
        items: the films of its slots, in order.
    """

    role: str
    text: str
    items: tuple[int, ...]


class Dialogue(NamedTuple):
    """A dialogue of a seeker and a recommender.

    Attributes:
        index: its number in the tables.
        split: train, valid or test.
        turns: what was said, in order.
        liked: film -> 1 liked, 0 disliked, 2 not said, where the seeker was asked.
    """

    index: int
    split: str
    turns: tuple[Turn, ...]
    liked: dict[int, int]


class Target(NamedTuple):
    """A film that the recommender named, to be predicted from the turns before.

    Attributes:
        dialogue: number of the dialogue.
        turn: the recommender's turn, never the first of the dialogue.
        item: the film.
        is_repeat: whether somebody named it before, be it earlier in the same turn.
        liked: 1 liked, 0 disliked, 2 not said.
    """

    dialogue: int
    turn: int
    item: int
    is_repeat: bool
    liked: int


class Dialogues:
    """All prepared dialogues and the films they name.

    Attributes:
        items: item (1 and up; 0 is padding), movies, title, year, categories, mentions (slots in
            train), by item.
        all: the dialogues in order.
    """

    def __init__(self, items: pl.DataFrame, dialogues: Iterable[Dialogue]) -> None:
        self.items = items
        self.all = list(dialogues)
        self._titles = [
            title if year is None else f"{title} ({year})"
            for title, year in items.select("title", "year").iter_rows()
        ]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the tables of a folder.

        Raises:
            UserError: a table is missing or damaged, or was not written by `prepare`.
        """
        tables = {
            name: read_parquet(Path(folder) / f"{name}.parquet", columns, NULLABLE, MADE_BY)
            for name, columns in SCHEMAS.items()
        }
        named: dict[tuple[int, int], list[int]] = defaultdict(list)
        for dialogue, turn, _, item, _ in tables["mentions"].sort(*_KEYS, "position").iter_rows():
            named[dialogue, turn].append(item)
        turns: dict[int, list[Turn]] = defaultdict(list)
        for dialogue, turn, role, text in tables["turns"].sort(*_KEYS).iter_rows():
            turns[dialogue].append(Turn(role, text, tuple(named[dialogue, turn])))
        liked: dict[int, dict[int, int]] = defaultdict(dict)
        for dialogue, item, _, _, answer in tables["feedback"].iter_rows():
            liked[dialogue][item] = answer
        return cls(
            tables["items"].sort("item"),
            (
                Dialogue(dialogue, split, tuple(turns[dialogue]), liked[dialogue])
                for dialogue, _, split in tables["dialogues"].sort("dialogue").iter_rows()
            ),
        )

    @property
    def n_items(self) -> int:
        """Number of films: the last one's number."""
        return len(self.items)

    def split(self, name: str) -> list[Dialogue]:
        """The dialogues of train, valid or test."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is none of {', '.join(SPLITS)}")
        return [dialogue for dialogue in self.all if dialogue.split == name]

    def title(self, item: int) -> str:
        """A film's title with its year, where that is known: "Heat (1995)"."""
        if not 1 <= item <= self.n_items:
            raise ValueError(f"item {item} is not within 1 and {self.n_items}")
        return self._titles[item - 1]


def targets(dialogues: Iterable[Dialogue]) -> list[Target]:
    """Each film in a turn of the recommender that has a turn before it, in order of naming."""
    found = []
    for dialogue in dialogues:
        named: set[int] = set()
        for number, turn in enumerate(dialogue.turns):
            for item in turn.items:
                if turn.role == RECOMMENDER and number:
                    liked = dialogue.liked.get(item, NOT_SAID)
                    found.append(Target(dialogue.index, number, item, item in named, liked))
                named.add(item)
    return found


_KEYS = ("dialogue", "turn")
