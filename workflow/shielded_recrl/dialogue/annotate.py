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
from pathlib import Path
from typing import Annotated

import polars as pl
import tyro

from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.emotion.turns import SCHEMA, annotate, labeller
from shielded_recrl.dialogue.settings import AnnotateSettings
from shielded_recrl.files import SEAL, sealed

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
