"""What the recommender has to beat: copying, popularity, co-occurrence.

In: counts of the train dialogues. Out: scores [B, I+1] of every item for contexts.

    popularity      train dialogues that name the item
    copy            items already named, the last first; after them by popularity
    cooccurrence    sum over the items named of the train dialogues that name both; then by popularity
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from shielded_recrl.dialogue.recommender.contexts import Context
from shielded_recrl.dialogue.recommender.evidence import Counts

Score = Callable[[Sequence[Context]], np.ndarray]


def baselines(counts: Counts) -> dict[str, Score]:
    """Every baseline by name."""
    popularity = np.asarray(counts.items.sum(axis=0)).ravel().astype(np.float64)
    # Below any difference that the counts make.
    tie = popularity / (popularity.sum() + 1)
    together = (counts.items.T @ counts.items).tocsr()
    together.setdiag(0)

    def copy(contexts: Sequence[Context]) -> np.ndarray:
        scores = np.tile(tie, (len(contexts), 1))
        for row, context in enumerate(contexts):
            for place, mention in enumerate(context.mentions, start=1):
                scores[row, mention.item] = place + tie[mention.item]
        return scores

    def cooccurrence(contexts: Sequence[Context]) -> np.ndarray:
        scores = np.tile(tie, (len(contexts), 1))
        for row, context in enumerate(contexts):
            scores[row] += np.asarray(together[sorted(context.named)].sum(axis=0)).ravel()
        return scores

    return {
        "copy": copy,
        "popularity": lambda contexts: np.tile(popularity, (len(contexts), 1)),
        "cooccurrence": cooccurrence,
    }
