"""The click model of training: what a user who reads the explanation would do.

A probability, not a draw, so it adds no noise to the reward. It follows the examination hypothesis
(Richardson et al. 2007; Craswell et al. 2008): a user clicks what was read and attracts.

    P(click) = E(text) A(u, i, text)
    E = coherence STAY^max(0, words - patience)
    A = sigmoid(INTERCEPT + bias(u) + relevance(u, i) + FEATURES features + SIMILARITY similarity)

with bias(u) ~ N(0, BIAS_SCALE) a function of the user alone, and relevance the standardised score
of the ranker. The evaluation's simulator, which no training module can reach, is another model:
its form, its relevance (from other users' interactions), its index of claims and its draws are its
own. Both take distinct bigrams and copied n-grams from `rl.text`, and both biases are N(0, 0.3) by
default, drawn independently.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

INTERCEPT = -2.0
FEATURES = 2.0
SIMILARITY = 2.0
BIAS_SCALE = 0.3
# Share of the readers that stay at each word beyond their patience.
STAY = 0.97
# Two numbers before the user, so that the stream is no other model's (seed, user).
SEED = (20_177, 1)


def click_probability(
    *,
    coherence: float,
    words: int,
    patience: int,
    features: float,
    similarity: float,
    relevance: float,
    bias: float,
) -> float:
    """P(click) in [0, 1]; 0 for an incoherent text.

    Args:
        coherence: of the text, in [0, 1].
        words: of the text.
        patience: words a user reads before some leave.
        features: relevance by named features, in [0, 1], not scaled by coherence.
        similarity: relevance by embeddings, in [0, 1], not scaled by coherence.
        relevance: standardised relevance of the item to the user.
        bias: of the user, see `user_bias`.
    """
    logit = INTERCEPT + bias + relevance + FEATURES * features + SIMILARITY * similarity
    # tanh does not overflow.
    attraction = 0.5 * (1 + math.tanh(logit / 2))
    return coherence * STAY ** max(0, words - patience) * attraction


@lru_cache(65_536)
def user_bias(user: int) -> float:
    """bias(user) ~ N(0, BIAS_SCALE)."""
    return float(np.random.default_rng([*SEED, user]).normal(0, BIAS_SCALE))
