"""How well distributions over emotions fit comments whose emotions are known.

In: distributions [n, 9] and the emotions that each comment shows, bool [n, 9]. Out: scores with
bootstrap intervals over comments.

Confusion, accuracy, precision, recall and F1 are those of the likeliest emotion, over comments that
show one emotion only: what is right is then one of nine. `any` is over all comments: the share whose
likeliest emotion is among those shown. `kept` judges what `annotate` keeps, over all comments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.emotion.turns import kept
from shielded_recrl.dialogue.settings import AnnotateSettings
from shielded_recrl.statistics import Interval, finite_or_null, paired_bootstrap

BINS = 10


def scores(
    found: np.ndarray, shown: np.ndarray, annotate: AnnotateSettings, resamples: int, seed: int
) -> dict[str, Any]:
    """All scores, as report.json has them.

    Args:
        found: distributions [n, 9].
        shown: bool [n, 9]; at least one comment shows one emotion only.
        annotate: what is kept of a distribution.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    single = shown.sum(axis=1) == 1
    table = confusion(found[single], shown[single])
    likeliest = found.argmax(axis=1)
    hit = shown[np.arange(len(shown)), likeliest]
    return {
        **intervals(table, resamples, seed),
        "any": paired_bootstrap(hit, resamples, seed)._asdict(),
        "calibration_error": calibration_error(found[single].max(axis=1), hit[single]),
        "kept": kept_scores(found, shown, annotate),
        "confusion": table.tolist(),
    }


def confusion(found: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Counts [9, 9] of comments of one emotion: row what they show, column the likeliest.

    >>> confusion(np.eye(9)[[0, 5]], np.eye(9, dtype=bool)[[0, 0]])[0, [0, 5]]
    array([1, 1])
    """
    size = len(EMOTIONS)
    cells = shown.argmax(axis=1) * size + found.argmax(axis=1)
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def intervals(table: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """Accuracy, macro-F1 and the three scores of each emotion that occurs, with intervals.

    All are functions of the confusion's counts, and the counts of comments drawn with replacement are
    multinomial with the table's shares.
    """
    total = int(table.sum())
    drawn = np.random.default_rng(seed).multinomial(total, table.ravel() / total, resamples)
    estimate, resampled = (_figures(t) for t in (table, drawn.reshape(-1, *table.shape)))
    named = {
        name: Interval(
            float(value), *map(float, np.nanpercentile(resampled[name], [2.5, 97.5]))
        )._asdict()
        for name, value in estimate.items()
        if value.ndim == 0
    }
    occur = np.flatnonzero(table.sum(axis=1))
    low, high = np.nanpercentile(resampled["f1"][:, occur], [2.5, 97.5], axis=0)
    by_emotion = {
        EMOTIONS[place]: finite_or_null(
            {
                "precision": estimate["precision"][place],
                "recall": estimate["recall"][place],
                "f1": estimate["f1"][place],
                "f1_low": low[index],
                "f1_high": high[index],
            }
        )
        | {"comments": int(table[place].sum())}
        for index, place in enumerate(occur)
    }
    return {"comments": total, **named, "emotions": by_emotion}


def _figures(tables: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of confusions [..., 9, 9]; NaN where there is nothing to divide by.

    The macro-F1 is over emotions that occur: none can be found of one that does not.
    """
    right = np.diagonal(tables, axis1=-2, axis2=-1)
    shown, named = tables.sum(axis=-1), tables.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = {
            "precision": right / named,
            "recall": right / shown,
            "f1": np.where(shown > 0, 2 * right / (shown + named), np.nan),
        }
    return {
        "accuracy": right.sum(axis=-1) / shown.sum(axis=-1),
        "macro_f1": np.nanmean(figures["f1"], axis=-1),
        **figures,
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017) in ten bins of equal width.

    >>> calibration_error(np.array([0.75, 0.75]), np.array([True, False]))
    0.25
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def kept_scores(
    found: np.ndarray, shown: np.ndarray, annotate: AnnotateSettings
) -> dict[str, float]:
    """Precision and recall of the emotions kept, over all comments, and how many a comment has."""
    chosen = np.zeros_like(shown)
    for row, places in enumerate(kept(found, annotate)):
        chosen[row, places] = True
    right = int((chosen & shown).sum())
    return {
        "precision": right / max(1, int(chosen.sum())),
        "recall": right / int(shown.sum()),
        "per_comment": float(chosen.sum(axis=1).mean()),
    }
