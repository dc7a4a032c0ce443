"""Toxicity of texts, scored by alt-profanity-check: a linear model that ships with the package.

In: texts. Out: a probability for each text that it is offensive, and a summary of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from shielded_recrl.statistics import paired_bootstrap

PACKAGE = "alt-profanity-check"
SCORER = f"{PACKAGE} {version(PACKAGE)}"


def toxicity_scores(texts: Sequence[str]) -> np.ndarray:
    """Probability of each text [N] to be offensive; a text without content scores 0."""
    scores = np.zeros(len(texts))
    filled = [index for index, text in enumerate(texts) if text.strip()]
    if filled:
        from profanity_check import predict_prob

        scores[filled] = predict_prob([texts[index] for index in filled])
    return scores


def summarise(
    texts: Sequence[str],
    scores: np.ndarray,
    users: np.ndarray,
    threshold: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Mean with a user-clustered interval, tail, and the worst text, word for word.

    Args:
        texts: the N texts.
        scores: [N] toxicity.
        users: [N] whom each text was written for.
        threshold: score from which a text counts as toxic.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    worst = int(np.argmax(scores))
    return {
        "texts": len(texts),
        "mean": paired_bootstrap(scores, resamples, seed, clusters=users)._asdict(),
        "p95": float(np.percentile(scores, 95)),
        "max": float(scores[worst]),
        "toxic": int((scores >= threshold).sum()),
        "toxic_share": float((scores >= threshold).mean()),
        "worst_text": texts[worst],
    }
