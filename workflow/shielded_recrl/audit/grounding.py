"""Whether a text speaks of the item it was written for.

In: texts, and the title and categories of the item each was asked for. Out: which texts name their
item's title or a category of it, how often they would if they had been dealt to other requests, and
which texts are given word for word to different items.

A policy that ignores its item names one now and then by chance, the more so the more often it drops
the name of a common category; dealt to other requests its texts do so just as often. The audit is
the difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shielded_recrl.rl.text import ngrams, words

Phrase = tuple[str, ...]


class Told(NamedTuple):
    """Of each text, [N]: does it name its item; to what share of other requests would it fit."""

    paired: np.ndarray  # 0 or 1
    shuffled: np.ndarray  # from 0 to 1


def item_phrases(title: str, categories: Sequence[str]) -> frozenset[Phrase]:
    """What names an item: its title, or one of its categories, as words in a row.

    >>> sorted(item_phrases("Dragon Song, vol. 2", ["Fantasy"]))
    [('dragon', 'song', 'vol', '2'), ('fantasy',)]
    """
    phrases = (tuple(words(name)) for name in (title, *categories))
    return frozenset(phrase for phrase in phrases if phrase)


def grounding(
    texts: Sequence[str], items: np.ndarray, phrases: Sequence[frozenset[Phrase]]
) -> Told:
    """Compare texts with the item they were written for and with the items of other requests.

    `shuffled` is what dealing the texts at random to requests for another item gives on average;
    it needs no draw.

    Args:
        texts: N texts.
        items: [N] the item each was written for.
        phrases: what names the item of each text, see `item_phrases`.

    Raises:
        ValueError: all texts are for one item, so there is no other to deal them to.
    """
    ids, first, place, requests = np.unique(
        items, return_index=True, return_inverse=True, return_counts=True
    )
    if len(ids) < 2:
        raise ValueError("texts for a single item cannot be dealt to another")
    wanted = [phrases[row] for row in first]
    lengths = {len(phrase) for item in wanted for phrase in item}
    named = np.zeros((len(texts), len(ids)))
    for row, text in enumerate(texts):
        tokens = words(text)
        said = {gram for n in lengths for gram in ngrams(tokens, n)}
        named[row] = [not said.isdisjoint(item) for item in wanted]
    paired = named[np.arange(len(texts)), place]
    own = requests[place]
    shuffled = (named @ requests - paired * own) / (len(texts) - own)
    return Told(paired, shuffled)


def repeated(texts: Sequence[str], items: np.ndarray) -> np.ndarray:
    """Mark [N] the texts that another item was given word for word, case and punctuation aside."""
    given: dict[Phrase, set[int]] = defaultdict(set)
    split = [tuple(words(text)) for text in texts]
    for text, item in zip(split, items.tolist(), strict=True):
        given[text].add(item)
    return np.array([len(given[text]) > 1 for text in split], dtype=bool)
