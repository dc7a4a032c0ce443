"""Label every turn of the prepared dialogues with emotions.

In: the prepared dialogues, and the trained classifier or none, for the list of words. Out:
turns.parquet with dialogue, turn, emotions and probabilities: of each turn at most three emotions
above 0.1, the likeliest first.

The likeliest of nine is above 0.1 always, so that by default every turn has one at least. A turn that
says nothing beside films has none; so has, under a higher bound, one without a clear emotion. Readers
take a turn without emotions for neutral, as ECR does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import tyro

from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.emotion import lexicon
from shielded_recrl.dialogue.emotion.features import has_words
from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.settings import AnnotateSettings
from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import SEAL, intact, sealed

SCHEMA = {
    "dialogue": pl.Int32,
    "turn": pl.Int16,
    "emotions": pl.List(pl.String),
    "probabilities": pl.List(pl.Float32),
}
DEFAULTS = AnnotateSettings()


def main(
    *,
    data: Path,
    out: Path,
    model: Path | None = None,
    settings: Annotated[AnnotateSettings, tyro.conf.arg(name="")] = DEFAULTS,
) -> None:
    """Label every turn with emotions.

    Args:
        data: folder of the prepared dialogues.
        out: parquet file to write.
        model: folder of the trained classifier; not read with `source` lexicon.
        settings: what labels, and what is kept.
    """
    probabilities = labeller(model, settings)
    turns = [
        (dialogue.index, number, turn.text)
        for dialogue in Dialogues.load(data).all
        for number, turn in enumerate(dialogue.turns)
    ]
    emotions = annotate([text for *_, text in turns], probabilities, settings)
    table = pl.DataFrame(
        [
            (dialogue, turn, [name for name, _ in found], [share for _, share in found])
            for (dialogue, turn, _), found in zip(turns, emotions, strict=True)
        ],
        schema=SCHEMA,
        orient="row",
    )
    with sealed(out) as partial:
        table.write_parquet(partial, metadata=SEAL)
    counts = Counter(found[0][0] if found else "none" for found in emotions)
    shares = ", ".join(
        f"{name} {counts[name] / max(1, len(turns)):.3f}" for name in (*EMOTIONS, "none")
    )
    print(f"{out}: {len(turns)} turns by the {settings.source}; likeliest: {shares}")


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
    again = "run `python -m shielded_recrl.dialogue annotate`"
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {again}")
    try:
        table = pl.read_parquet(intact(path))
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path}: no readable parquet file ({first_line(error)}); {again} again"
        ) from None
    if table.schema != SCHEMA:
        raise UserError(f"{path}: expected the columns {', '.join(SCHEMA)}; {again} again")
    rows = list(table.iter_rows())
    if not all(
        names is not None
        and shares is not None
        and len(names) == len(shares)
        and set(names) <= set(EMOTIONS)
        and None not in shares
        for *_, names, shares in rows
    ):
        raise UserError(f"{path}: a turn has emotions that are none of the nine; {again} again")
    return {
        (dialogue, turn): list(zip(names, shares, strict=True))
        for dialogue, turn, names, shares in rows
    }
