"""Counts of words that the unseen judge rests on: how likely, how alike, with what effect.

In: texts, or sets of words. Out: a trigram model, a tf-idf index, words' effects on a number and on a
chance. For one short text at a time, which is how judges are asked, scikit-learn's vectorisers take a
hundred times longer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from shielded_recrl.dialogue.judges.base import read, tokens

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BEGIN, END, RARE = "<begin>", "<end>", "<rare>"
# Strength of the ridge, in texts, and inverse strength of the logistic regression; words of fewer texts
# have no effect.
RIDGE, CHANCE, FEWEST_TEXTS = 10.0, 0.05, 3


class Trigrams:
    """A trigram model of texts, interpolated as Witten and Bell (1991) do."""

    def __init__(self, texts: Iterable[str]) -> None:
        rows = [tokens(text) for text in texts]
        seen = Counter(token for row in rows for token in row)
        self._words = {token for token, count in seen.items() if count > 1}
        # A word that is not known is one of at least as many as came once.
        self._rare_bits = math.log2(max(len(seen) - len(self._words), 1))
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._followers: Counter[tuple[str, ...]] = Counter()
        self._totals: Counter[tuple[str, ...]] = Counter()
        for row in rows:
            for gram in self._grams(row):
                for part in (gram, gram[1:], gram[2:]):
                    self._counts[part] += 1
                    self._totals[part[:-1]] += 1
                    self._followers[part[:-1]] += self._counts[part] == 1

    def surprisal(self, text: str) -> float:
        """Mean bits a token, the end of the text among them."""
        grams = self._grams(tokens(text))
        bits = -sum(math.log2(self.probability(gram)) for gram in grams)
        return (bits + self._rare_bits * sum(gram[-1] == RARE for gram in grams)) / len(grams)

    def probability(self, gram: tuple[str, ...]) -> float:
        """P(w | h) = (c(h w) + T(h) P(w | shorter h)) / (c(h) + T(h)), T the kinds that follow h.

        The shortest of all gives each known word, the end and the rare ones the same.
        """
        likely = 1 / (len(self._words) + 2)
        for start in range(len(gram) - 1, -1, -1):
            part = gram[start:]
            if total := self._totals[part[:-1]]:
                kinds = self._followers[part[:-1]]
                likely = (self._counts[part] + kinds * likely) / (total + kinds)
        return likely

    def _grams(self, row: Sequence[str]) -> list[tuple[str, ...]]:
        known = [word if word in self._words else RARE for word in row]
        padded = [BEGIN, BEGIN, *known, END]
        return [tuple(padded[end - 2 : end + 1]) for end in range(2, len(padded))]


class Likeness:
    """Texts by the cosine of their words and pairs of words, weighed by tf-idf; films and marks are none.

    Attributes:
        rows: of each text, term -> weight; squares add up to 1.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [self._terms(text) for text in texts]
        having = Counter(term for row in counts for term in row)
        self._weight = {
            term: 1 + math.log((1 + len(texts)) / (1 + n)) for term, n in having.items()
        }
        self.rows = [self._weighed(row) for row in counts]
        postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            for term, weight in row.items():
                postings[term].append((number, weight))
        self._postings = {
            term: (np.array([n for n, _ in places]), np.array([w for _, w in places]))
            for term, places in postings.items()
        }

    def vector(self, text: str) -> dict[str, float]:
        """Term -> weight of a text; terms that no known text has are left out."""
        return self._weighed(self._terms(text))

    def nearest(self, text: str, most: int) -> np.ndarray:
        """Numbers of the texts most like this one, nearest first, equal ones in their order."""
        likeness = np.zeros(len(self.rows))
        for term, weight in self.vector(text).items():
            numbers, weights = self._postings[term]
            likeness[numbers] += weight * weights
        return np.argsort(-likeness, kind="stable")[:most]

    def _terms(self, text: str) -> Counter[str]:
        words = read(text).words
        return Counter([*words, *map(" ".join, pairwise(words))])

    def _weighed(self, row: Counter[str]) -> dict[str, float]:
        weights = {t: n * self._weight[t] for t, n in row.items() if t in self._weight}
        length = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        return {term: weight / length for term, weight in weights.items()}


class Chance:
    """How likely something is, by logistic regression on what there is (Cox 1958).

    Both outcomes weigh the same in all, so that neither is likely for being common.
    """

    def __init__(self, rows: Sequence[Collection[str]], happened: Sequence[bool]) -> None:
        """
        Args:
            rows: [n] sets of words.
            happened: [n]; where all are the same nothing is learned, and the chance is one half.
        """
        from sklearn.linear_model import LogisticRegression

        self._weights: dict[str, float] = {}
        self._bias = 0.0
        words, table = _indicators(rows)
        if words and len(set(happened)) == 2:
            model = LogisticRegression(C=CHANCE, class_weight="balanced", max_iter=1000)
            model.fit(table, happened)
            self._weights = dict(zip(words, model.coef_[0].tolist(), strict=True))
            self._bias = float(model.intercept_[0])

    def __call__(self, row: Collection[str]) -> float:
        """The chance where there are these words."""
        logit = self._bias + sum(self._weights.get(word, 0.0) for word in sorted(row))
        return 1 / (1 + math.exp(-logit))


def word_effects(rows: Sequence[Collection[str]], values: Sequence[float]) -> dict[str, float]:
    """Effect of each word on a number of its rows, by ridge regression (Hoerl and Kennard 1970)."""
    from sklearn.linear_model import Ridge

    words, table = _indicators(rows)
    if not words:
        return {}
    return dict(zip(words, Ridge(alpha=RIDGE).fit(table, values).coef_.tolist(), strict=True))


def _indicators(rows: Sequence[Collection[str]]) -> tuple[list[str], csr_array]:
    """Words of enough rows, and which rows [n] have which of them."""
    from scipy.sparse import csr_array

    having = Counter(word for row in rows for word in row)
    words = sorted(word for word, count in having.items() if count >= FEWEST_TEXTS)
    column = {word: number for number, word in enumerate(words)}
    places = [[column[word] for word in sorted(row) if word in column] for row in rows]
    table = csr_array(
        (
            np.ones(sum(map(len, places))),
            np.array([place for row in places for place in row], dtype=np.int32),
            np.cumsum([0, *map(len, places)]),
        ),
        shape=(len(rows), len(words)),
    )
    return words, table
