"""Emotions of turns: what gives texts their distributions, which are kept, and their table.

In: texts, or turns.parquet of `annotate`. Out: of each turn its emotions, the likeliest first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from shielded_recrl.dialogue.emotion import lexicon
from shielded_recrl.dialogue.emotion.features import has_words
from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.settings import AnnotateSettings
from shielded_recrl.errors import UserError
from shielded_recrl.parquet import read_parquet

SCHEMA = {
    "dialogue": pl.Int32,
    "turn": pl.Int16,
    "emotions": pl.List(pl.String),
    "probabilities": pl.List(pl.Float32),
}
MADE_BY = "python -m shielded_recrl.dialogue annotate"


def labeller(
    model: Path | None, settings: AnnotateSettings
) -> Callable[[Sequence[str]], np.ndarray]:
    """What gives texts their distributions [n, 9].

    Raises:
        UserError: the classifier is asked for, and no folder is given or it holds none.
    """
    if settings.source == "lexicon":
        return lexicon.probabilities
    if model is None:
        raise UserError(
            "--model: no folder given; expected that of the trained classifier, or --source lexicon"
        )
    from shielded_recrl.dialogue.emotion.classifier import Classifier

    return Classifier.load(model).probabilities


def annotate(
    texts: Sequence[str],
    probabilities: Callable[[Sequence[str]], np.ndarray],
    settings: AnnotateSettings,
) -> list[list[tuple[str, float]]]:
    """Emotions of each text with their probabilities, the likeliest first.

    Args:
        texts: with a `<movie>` for each film.
        probabilities: gives their distributions [n, 9].
        settings: what is kept.
    """
    found = probabilities(texts)
    return [
        [(EMOTIONS[place], float(row[place])) for place in places] if has_words(text) else []
        for text, row, places in zip(texts, found, kept(found, settings), strict=True)
    ]


def kept(found: np.ndarray, settings: AnnotateSettings) -> list[np.ndarray]:
    """Places of the emotions kept of each distribution [n, 9]; of equal ones the first comes first.

    >>> kept(np.array([[0.05, 0.3, 0.3, 0, 0.12, 0.15, 0, 0, 0.08]]), AnnotateSettings())
    [array([1, 2, 5])]
    """
    order = np.argsort(-found, axis=1, kind="stable")[:, : settings.at_most]
    return [
        places[row[places] > settings.threshold] for row, places in zip(found, order, strict=True)
    ]


def load_emotions(path: Path) -> dict[tuple[int, int], list[tuple[str, float]]]:
    """Dialogue and turn -> its emotions with their probabilities, the likeliest first.

    Raises:
        UserError: the file is missing or damaged, or was not written by `annotate`.
    """
    table = read_parquet(path, SCHEMA, made_by=MADE_BY)
    rows = list(table.iter_rows())
    if not all(
        names is not None
        and shares is not None
        and len(names) == len(shares)
        and set(names) <= set(EMOTIONS)
        and None not in shares
        for *_, names, shares in rows
    ):
        raise UserError(
            f"{path}: a turn has emotions that are none of the nine; run `{MADE_BY}` again"
        )
    return {
        (dialogue, turn): list(zip(names, shares, strict=True))
        for dialogue, turn, names, shares in rows
    }
