"""A few prepared dialogues with emotions and recommendations: what tests of the response LM read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from shielded_recrl.dialogue.corpus.dialogues import (
    RECOMMENDATIONS,
    RECOMMENDER,
    SCHEMAS,
    SEEKER,
    SLOT,
)
from shielded_recrl.dialogue.emotion.turns import SCHEMA as EMOTIONS
from shielded_recrl.dialogue.inputs import ResponseInputs
from shielded_recrl.dialogue.settings import ResponsePromptSettings
from shielded_recrl.files import write_json

FILMS = 12
OPENINGS = ("Hello, I like {} a lot.", "Hi! Any film like {} please?", "I loved {} so much!")
OFFERS = ("Have you seen {}?", "You may like {} or {}.", "Try {}, it is great.", "{} is fun!")
ANSWERS = ("Oh yes, that one is great!", "No, I have not seen it. Anything else?")
THANKS = ("Thank you, bye!", "Thanks a lot.")
FAREWELLS = ("Enjoy it, bye!", "You are welcome.")


@dataclass(frozen=True)
class TinyDialogues:
    """Paths of the tables."""

    data: Path
    emotion: Path
    recommendations: Path

    def inputs(self, base: Path, prompt: ResponsePromptSettings, **others: Any) -> ResponseInputs:
        """As commands take them, with a base LM."""
        return ResponseInputs(base=base, prompt=prompt, **vars(self), **others)


def write_dialogues(folder: Path, count: int = 40, seed: int = 0) -> TinyDialogues:
    """Dialogues of six turns: of ten, seven are for training, one for validation, two for tests."""
    rng = random.Random(seed)
    rows: dict[str, list[tuple]] = {name: [] for name in SCHEMAS}
    feels, recommended = [], []
    for item in range(1, FILMS + 1):
        rows["items"].append((item, [f"m{item}"], f"Film {item}", 1980 + item, ["Comedy"], 1))
    for dialogue in range(count):
        split = "valid" if dialogue % 10 == 7 else "test" if dialogue % 10 > 7 else "train"
        rows["dialogues"].append((dialogue, f"c{dialogue}", split))
        said = (OPENINGS, OFFERS, ANSWERS, OFFERS, THANKS, FAREWELLS)
        for turn, texts in enumerate(said):
            role = RECOMMENDER if turn % 2 else SEEKER
            text = rng.choice(texts)
            for position in range(text.count("{}")):
                item = rng.randint(1, FILMS)
                again = any(row[0] == dialogue and row[3] == item for row in rows["mentions"])
                rows["mentions"].append((dialogue, turn, position, item, again))
                rows["feedback"].append((dialogue, item, True, 1, 1))
            text = text.replace("{}", SLOT)
            rows["turns"].append((dialogue, turn, role, text))
            labels = ["happy", "curious"] if "!" in text else ["curious"]
            feels.append((dialogue, turn, labels, [0.6, 0.2][: len(labels)]))
            if role == RECOMMENDER:
                for position, item in enumerate(rng.sample(range(1, FILMS + 1), 10), start=1):
                    recommended.append((dialogue, turn, position, item))
    rows["feedback"] = list({row[:2]: row for row in rows["feedback"]}.values())
    data = folder / "data"
    data.mkdir(parents=True)
    for name, schema in SCHEMAS.items():
        frame = pl.DataFrame(rows[name], schema=schema, orient="row")
        frame.write_parquet(data / f"{name}.parquet")
    write_json(data / "stats.json", {"synthetic": True})
    paths = TinyDialogues(data, folder / "emotions.parquet", folder / "recommendations.parquet")
    pl.DataFrame(feels, schema=EMOTIONS, orient="row").write_parquet(paths.emotion)
    frame = pl.DataFrame(recommended, schema=RECOMMENDATIONS, orient="row")
    frame.write_parquet(paths.recommendations)
    return paths
