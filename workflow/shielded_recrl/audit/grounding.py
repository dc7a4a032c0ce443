"""Whether a text speaks of the item it was written for.

In: texts, and the title and categories of the item each was asked for. Out: which texts name their
item's title or a category of it, how often they would if they had been dealt to the other items of
the same user, and which texts are given word for word to different items.

A policy that ignores its item names one now and then by chance, the more so the more it follows its
user's taste; dealt to that user's other items its texts do so just as often. The audit is the
difference. Dealt to the items of others, a text written from the history alone would seem grounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shielded_recrl.rl.text import ngrams, words

Phrase = tuple[str, ...]


class Told(NamedTuple):
    """Of each text, [N]: does it name its item; what share of its user's others would it fit."""

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
    texts: Sequence[str],
    users: np.ndarray,
    items: np.ndarray,
    phrases: Sequence[frozenset[Phrase]],
) -> Told:
    """Compare texts with the item they were written for and with the others of the same user.

    `shuffled` is what dealing each text at random to a request of its user for another item gives on
    average; it needs no draw.

    Args:
        texts: N texts.
        users: [N] whom each was written for.
        items: [N] the item each was written for.
        phrases: what names the item of each text, see `item_phrases`.

    Raises:
        ValueError: all texts of some user are for one item, so there is no other to deal them to.
    """
    requests: dict[int, list[int]] = defaultdict(list)
    for row, user in enumerate(users.tolist()):
        requests[user].append(row)
    paired, shuffled = np.zeros(len(texts)), np.zeros(len(texts))
    for user, rows in requests.items():
        lengths = {len(phrase) for row in rows for phrase in phrases[row]}
        for row in rows:
            others = [other for other in rows if items[other] != items[row]]
            if not others:
                raise ValueError(
                    f"texts for a single item of user {user} cannot be dealt to another"
                )
            tokens = words(texts[row])
            said = {gram for n in lengths for gram in ngrams(tokens, n)}
            paired[row] = not said.isdisjoint(phrases[row])
            shuffled[row] = np.mean([not said.isdisjoint(phrases[other]) for other in others])
    return Told(paired, shuffled)


def repeated(texts: Sequence[str], items: np.ndarray) -> np.ndarray:
    """Mark [N] the texts that another item was given word for word, case and punctuation aside."""
    given: dict[Phrase, set[int]] = defaultdict(set)
    split = [tuple(words(text)) for text in texts]
    for text, item in zip(split, items.tolist(), strict=True):
        given[text].add(item)
    return np.array([len(given[text]) > 1 for text in split], dtype=bool)
