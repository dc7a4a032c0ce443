"""What train dialogues count for: which films are named, together, and beside which words.

In: dialogues. Out: for contexts, log-odds of every item. With n_i the dialogues that name item i,
C_mi those that name both m and i, N_wi those that name i and say word w, p_i and p_w the shares of
items among all mentions and of words among all dialogues:

    popularity      log p_i
    co-occurrence   log of the mean over mentions m of (C_mi + a p_i) / (C_m. + a), over p_i
    words           sum over words w of log (N_wi + b p_w) / ((n_i + b) p_w), naive Bayes
    attribute words the same of a category or decade c, mean over those of item i
    related         cosine of item vectors: singular vectors of the log lift of co-occurrence
    attributes      log lift of attribute c of item i beside attribute d of mention m, mean over both
    dialogues       which items the train dialogues name that say what was said here

Counts that hold a dialogue know what it names. So a model that learns how far to trust them sees
each train dialogue through the counts of the others (`cross_fit`), as it will see a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, diags_array
from sklearn.utils.extmath import randomized_svd

from shielded_recrl.dialogue.corpus.dialogues import Dialogue
from shielded_recrl.dialogue.recommender.items import (
    Catalogue,
    indicators,
    unit_length,
    unit_rows,
    words,
)

VECTOR_DIM = 32
ATTRIBUTE_PRIOR = 5.0


class Evidence(NamedTuple):
    """Counts of some dialogues, as the terms of the sums above.

    Attributes:
        popularity: log p_i [I+1].
        neighbours: C_mi / (C_m. + a) / p_i, sparse [I+1, I+1].
        rest: a / (C_m. + a) [I+1].
        words: log (1 + N_wi / (b p_w)), sparse [V, I+1].
        length: log (1 + n_i / b) [I+1], to be taken off for each word.
        attribute_words: log-odds [V, A].
        vectors: unit rows [I+1, d]; zeros where there is no co-occurrence.
        attributes: log lift [A, A].
        dialogue_words: unit rows of inverse document frequencies [D, V].
        dialogue_items: 1 where a dialogue names an item, sparse [D, I+1].
        rarity: inverse document frequency of words [V].
    """

    popularity: np.ndarray
    neighbours: csr_array
    rest: np.ndarray
    words: csr_array
    length: np.ndarray
    attribute_words: np.ndarray
    vectors: np.ndarray
    attributes: np.ndarray
    dialogue_words: csr_array
    dialogue_items: csr_array
    rarity: np.ndarray

    @classmethod
    def fit(
        cls, counts: Counts, catalogue: Catalogue, item_prior: float, word_prior: float
    ) -> Evidence:
        """Turn counts into log-odds.

        Args:
            counts: of the dialogues to learn from.
            catalogue: the items.
            item_prior: a, in mentions.
            word_prior: b, in dialogues.
        """
        dialogues = counts.items.shape[0]
        named = np.asarray(counts.items.sum(axis=0)).ravel().astype(np.float64)
        share = (named + 0.5) / (named + 0.5).sum()
        together = (counts.items.T @ counts.items).tocsr()
        together.setdiag(0)
        together.eliminate_zeros()
        total = np.asarray(together.sum(axis=1)).ravel() + item_prior
        neighbours = diags_array(1 / total) @ together @ diags_array(1 / share)
        word_share = (np.asarray(counts.words.sum(axis=0)).ravel() + 0.5) / (dialogues + 1)
        beside = (
            diags_array(1 / (word_prior * word_share)) @ (counts.words.T @ counts.items)
        ).tocsr()
        beside.data = np.log1p(beside.data)
        of_attribute = counts.items @ catalogue.described
        of_attribute.data = np.ones_like(of_attribute.data)
        with_attribute = np.asarray(of_attribute.sum(axis=0)).ravel()
        both = (counts.words.T @ of_attribute).toarray()
        odds = np.log(both + word_prior * word_share[:, None]) - np.log(
            (with_attribute + word_prior) * word_share[:, None]
        )
        rarity = -np.log(word_share)
        return cls(
            popularity=np.log(share).astype(np.float32),
            neighbours=neighbours.tocsr().astype(np.float32),
            rest=(item_prior / total).astype(np.float32),
            words=beside.astype(np.float32),
            length=np.log1p(named / word_prior).astype(np.float32),
            attribute_words=odds.astype(np.float32),
            vectors=_vectors(neighbours.tocsr()),
            attributes=_attribute_lift(together, catalogue),
            dialogue_words=unit_length((counts.words @ diags_array(rarity)).tocsr()),
            dialogue_items=counts.items,
            rarity=rarity.astype(np.float32),
        )


class Counts(NamedTuple):
    """A row for each dialogue: what it names and says, 0 or 1."""

    items: csr_array  # [D, I+1]
    words: csr_array  # [D, V]

    def rows(self, some: np.ndarray) -> Counts:
        """Those of some dialogues."""
        return Counts(self.items[some], self.words[some])


def count(dialogues: Sequence[Dialogue], catalogue: Catalogue) -> Counts:
    """Count dialogues."""
    items = [[item for turn in d.turns for item in turn.items] for d in dialogues]
    said = [[word for turn in d.turns for word in words(turn.text)] for d in dialogues]
    identity = {item: item for item in range(catalogue.n_items + 1)}
    return Counts(indicators(items, identity), indicators(said, catalogue.vocabulary))


def _vectors(lift: csr_array) -> np.ndarray:
    """Left singular vectors of log (1 + lift), scaled by the singular values, as unit rows."""
    log_lift = lift.astype(np.float64)
    log_lift.data = np.log1p(log_lift.data)
    dim = min(VECTOR_DIM, lift.shape[0])
    left, values, _ = randomized_svd(log_lift, dim, n_iter=4, random_state=0)
    scaled = left * values
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    # Rounding is no direction.
    return np.where(lengths > 1e-6, scaled / np.maximum(lengths, 1e-6), 0).astype(np.float32)


def _attribute_lift(together: csr_array, catalogue: Catalogue) -> np.ndarray:
    """Log lift of attributes of items named together, smoothed by a few pairs each."""
    shares = unit_rows(catalogue.described)
    pairs = (shares.T @ together @ shares).toarray() + ATTRIBUTE_PRIOR
    expected = pairs.sum(axis=1, keepdims=True) * (pairs.sum(axis=0) / pairs.sum())
    return np.log(pairs / expected).astype(np.float32)


def cross_fit(
    counts: Counts, catalogue: Catalogue, item_prior: float, word_prior: float, folds: int
) -> list[tuple[np.ndarray, Evidence]]:
    """The rows of each fold, every `folds`-th, and the evidence of all the others."""
    fold = np.arange(counts.items.shape[0]) % folds
    return [
        (
            np.flatnonzero(fold == k),
            Evidence.fit(counts.rows(np.flatnonzero(fold != k)), catalogue, item_prior, word_prior),
        )
        for k in range(folds)
        if (fold == k).any()
    ]
