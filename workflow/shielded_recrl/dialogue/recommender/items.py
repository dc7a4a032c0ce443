"""What is known of films before anybody talks: title words, categories, decade.

In: the table of items and the words of the train turns. Out: one vocabulary for turns and titles,
and each item's title words and attributes as sparse rows, item 0 (padding) empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from shielded_recrl.dialogue.corpus.dialogues import SLOT, Dialogue

WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
DECADE = re.compile(r"\d{3}0s")
# Words of titles that tell no two films apart.
ARTICLES = frozenset(
    "a an and at de for from in is la le my no of on or part the to vs with".split()
)


class Catalogue(NamedTuple):
    """Items by what they are.

    Attributes:
        vocabulary: word -> column, of turns and titles alike.
        attributes: names of the columns of `described`: categories and decades.
        titles: float32 [I+1, V], 1 for each word of the title.
        described: float32 [I+1, A], 1 for each attribute.
    """

    vocabulary: dict[str, int]
    attributes: tuple[str, ...]
    titles: csr_array
    described: csr_array

    @property
    def n_items(self) -> int:
        """Number of items without the padding."""
        return self.titles.shape[0] - 1


def words(text: str) -> list[str]:
    """Lower-case words of a turn or title, in order, slots left out.

    >>> words("Have you seen <movie>? It's GREAT")
    ['have', 'you', 'seen', "it's", 'great']
    """
    return WORD.findall(text.replace(SLOT, " ").lower())


def title_words(title: str) -> set[str]:
    """The words of a title that say something."""
    return set(words(title)) - ARTICLES


def describe(items: pl.DataFrame, train: Iterable[Dialogue], min_dialogues: int) -> Catalogue:
    """Build the catalogue.

    Args:
        items: table of items in order.
        train: the train dialogues; their words make the vocabulary.
        min_dialogues: a word of turns counts from this many dialogues on; one of titles always.
    """
    titles = [set(), *map(title_words, items["title"])]
    said = Counter(
        word for dialogue in train for word in set().union(*(words(t.text) for t in dialogue.turns))
    )
    known = {word for word, count in said.items() if count >= min_dialogues}.union(*titles)
    vocabulary = {word: index for index, word in enumerate(sorted(known))}
    rows = [(), *(_attributes(row) for row in items.select("year", "categories").iter_rows())]
    attributes = tuple(sorted(set().union(*rows)))
    places = {name: index for index, name in enumerate(attributes)}
    return Catalogue(
        vocabulary, attributes, indicators(titles, vocabulary), indicators(rows, places)
    )


def _attributes(row: tuple[int | None, list[str]]) -> list[str]:
    year, categories = row
    return [*categories, *([] if year is None else [f"{year // 10 * 10}s"])]


def indicators(rows: Iterable[Iterable[str]], columns: Mapping[str, int]) -> csr_array:
    """Sparse rows with a 1 in the column of each name; unknown names are left out."""
    found = [sorted({columns[name] for name in row if name in columns}) for row in rows]
    offsets = np.cumsum([0, *map(len, found)])
    places = np.array([place for row in found for place in row], dtype=np.int64)
    return csr_array(
        (np.ones(len(places), dtype=np.float32), places, offsets), (len(found), len(columns))
    )


def unit_rows(matrix: csr_array) -> csr_array:
    """Rows divided by their sum, empty ones left as they are."""
    totals = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1e-12)
    scaled = matrix.copy()
    scaled.data = (scaled.data / np.repeat(totals, np.diff(scaled.indptr))).astype(np.float32)
    return scaled


def unit_length(matrix: csr_array) -> csr_array:
    """Rows divided by their length, empty ones left as they are."""
    lengths = np.sqrt(np.maximum(np.asarray(matrix.power(2).sum(axis=1)).ravel(), 1e-12))
    scaled = matrix.tocsr().copy()
    scaled.data = (scaled.data / np.repeat(lengths, np.diff(scaled.indptr))).astype(np.float32)
    return scaled
