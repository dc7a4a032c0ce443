"""Judged responses to the tiny dialogues: what tests of the critic learn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from shielded_recrl.dialogue.corpus.dialogues import SLOT, Dialogues
from shielded_recrl.dialogue.critique.judged import KEYS, columns, save_judged
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.settings import CriticTrainingSettings
from tiny_dialogues import TinyDialogues, write_dialogues

DIALOGUES = 120
KINDS = ("gold", "sampled", "corrupted:cut", "corrupted:empty")
SMALL = CriticTrainingSettings(
    vocabulary=320,
    hidden_size=32,
    layers=1,
    heads=2,
    max_tokens=48,
    epochs=6,
    batch_size=16,
    learning_rate=5e-3,
    bootstrap=100,
)


def score(text: str) -> list[float]:
    """What a judge of words says; each head has a word of its own."""
    words = text.lower().split()
    if not words:
        return [0.0] * len(HEADS)
    marks = ["great", "seen", SLOT, "?"]
    heads = [0.9 if any(mark in word for word in words) else 0.2 for mark in marks]
    return [*heads, float(np.mean(heads)) * min(1.0, len(words) / 4)]


def write_judged(
    folder: Path, relabel: Callable[[np.ndarray, pl.DataFrame], np.ndarray] | None = None
) -> TinyDialogues:
    """Write tiny dialogues and judged responses to them; `relabel` changes the scores [n, 5]."""
    paths = write_dialogues(folder, DIALOGUES)
    rows = []
    for dialogue in Dialogues.load(paths.data).all:
        for place in (1, 3):
            gold = dialogue.turns[place].text
            sampled = gold.replace("?", ".") if dialogue.index % 4 < 2 else gold.replace(SLOT, "it")
            texts = (gold, sampled, gold[: len(gold) // 3], "")
            rows += [
                (dialogue.index, place, dialogue.split, kind, text)
                for kind, text in zip(KINDS, texts, strict=True)
                if dialogue.split != "test"
            ]
    table = pl.DataFrame(rows, schema=KEYS, orient="row")
    scores = np.array([score(text) for text in table["text"]], dtype=np.float32)
    scores = scores if relabel is None else relabel(scores, table)
    named = {name: scores[:, place] for place, name in enumerate(columns("rules"))}
    blind = dict.fromkeys(columns("unseen"), pl.lit(None, pl.Float32))
    save_judged(folder / "judged.parquet", table.with_columns(**named, **blind))
    return paths


def make_test_absurd(table: pl.DataFrame, is_test: pl.Expr) -> pl.DataFrame:
    """Other words, films, emotions and answers in the rows of test."""
    absurd = {"text": "Zyx zyx <movie> zyx?!", "item": 1, "liked": 0, "is_repeat": True}
    return table.with_columns(
        pl.when(is_test).then(pl.lit(value)).otherwise(name).cast(table.schema[name]).alias(name)
        for name, value in absurd.items()
        if name in table.columns
    )


def take_test_away(table: pl.DataFrame, is_test: pl.Expr) -> pl.DataFrame:
    """No row of test."""
    return table.filter(~is_test)


SPOILT = {"absurd": make_test_absurd, "absent": take_test_away}


def spoil_test(paths: TinyDialogues, how: str) -> None:
    """Change every table's rows of test dialogues by one of `SPOILT`."""
    splits = pl.read_parquet(paths.data / "dialogues.parquet")
    test = splits.filter(split="test")["dialogue"].to_list()
    for path in (*paths.data.glob("*.parquet"), paths.emotion, paths.recommendations):
        table = pl.read_parquet(path)
        if "dialogue" in table.columns:
            spoilt = SPOILT[how](table, pl.col("dialogue").is_in(test))
            spoilt.write_parquet(path)
