"""Explanations against each other and against their items (Li et al. 2020, NETE; 2021, PETER; 2023,
PEPLER).

In: texts and requests. Out: ratios.

    usr    unique sentence ratio: distinct texts over texts
    fmr    feature matching ratio: share of texts that name a feature of their own item
    fcr    feature coverage ratio: features named in any text over all features
    div    feature diversity: features that two texts share, mean over all pairs; less is more
           diverse. Counted, not compared: sum over features f of C(n_f, 2), over C(N, 2)
    distinct_1, distinct_2   distinct n-grams over n-grams, of all texts together (Li et al. 2016)

The papers mine features from reviews, one a pair. Here the features of an item are what the prompt
tells of it: title and categories, found as names the way claims are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence, Set

import numpy as np

from shielded_recrl.explainer.prompts import Item, Request, short_title
from shielded_recrl.rl.evaluation.simulator import ClaimIndex, Phrase
from shielded_recrl.rl.text import ngrams, words, written_as_names


def unique_sentence_ratio(texts: Sequence[str]) -> float:
    """USR: distinct texts, as sequences of words between spaces, over texts.

    >>> unique_sentence_ratio(["A b.", "A  b.", "a b."])
    0.6666666666666666
    """
    return len({tuple(text.split()) for text in texts}) / len(texts)


def feature_matching_ratio(found: Sequence[Set[Hashable]], own: Sequence[Set[Hashable]]) -> float:
    """FMR: share of texts that name a feature of their own.

    Args:
        found: [n] features named in each text.
        own: [n] features of each text's item.
    """
    return sum(not one.isdisjoint(two) for one, two in zip(found, own, strict=True)) / len(found)


def feature_coverage_ratio(found: Sequence[Set[Hashable]], features: Set[Hashable]) -> float | None:
    """FCR: share of all features that some text names; None where there are no features."""
    return len(set().union(*found) & features) / len(features) if features else None


def feature_diversity(found: Sequence[Set[Hashable]]) -> float | None:
    """DIV: mean number of features that two texts share; None for a single text.

    >>> feature_diversity([{"plot"}, {"plot", "cast"}, {"cast"}])
    0.6666666666666666
    """
    if len(found) < 2:
        return None
    named = Counter(feature for features in found for feature in features)
    return sum(math.comb(count, 2) for count in named.values()) / math.comb(len(found), 2)


def distinct(texts: Sequence[str], n: int) -> float | None:
    """distinct-n: distinct n-grams over n-grams of all texts; None where there are none."""
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def item_features(item: Item) -> set[Phrase]:
    """Title and categories of an item, as words."""
    names = (short_title(item), *item.categories)
    return {phrase for phrase in (tuple(words(name)) for name in names) if phrase}


def named_features(text: str, item: Item, index: ClaimIndex) -> set[Phrase]:
    """Features that a text names, found as claims are.

    Args:
        text: about `item`.
        item: of which a title of one word is also found at the head of a sentence.
        index: finds them.
    """
    tokens = words(text)
    title = words(short_title(item))
    spans = index.spans(tokens, written_as_names(text, title if len(title) == 1 else ()))
    return {tuple(tokens[start:end]) for start, end in spans}


class Features:
    """Features of the explained items, and those that texts about them name."""

    def __init__(self, requests: Sequence[Request]):
        """
        Args:
            requests: [n], what is explained.
        """
        self._items = [request.about for request in requests]
        self._own = [item_features(item) for item in self._items]
        # An index wants a catalogue, whose first entry is padding.
        self._index = ClaimIndex([Item("", (), ""), *self._items])

    def metrics(self, texts: Sequence[str]) -> dict[str, float | None]:
        """FMR, FCR and DIV of n texts."""
        found = self._named(texts)
        return {
            "fmr": feature_matching_ratio(found, self._own),
            "fcr": feature_coverage_ratio(found, self._index.phrases),
            "div": feature_diversity(found),
        }

    def matching(
        self,
        texts: Sequence[str],
        places: np.ndarray | None = None,
        others: np.ndarray | None = None,
    ) -> float | None:
        """FMR of n texts, or of those at `places` [k] against the features of the items at `others`
        [k]; None where there are none."""
        found, own = self._named(texts), self._own
        if places is not None:
            found, own = [found[place] for place in places], [own[place] for place in others]
        return feature_matching_ratio(found, own) if found else None

    def _named(self, texts: Sequence[str]) -> list[set[Phrase]]:
        return [
            named_features(text, item, self._index)
            for text, item in zip(texts, self._items, strict=True)
        ]
