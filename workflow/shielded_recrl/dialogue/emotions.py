"""Train the emotion classifier on GoEmotions and tell how good it is.

In: the folder of GoEmotions. Out: `model.safetensors`, and `report.json` with scores on the test
split beside those of the word list and of the commonest emotion. Training reads train; dev sets the
temperature; test is looked at once, here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from shielded_recrl.dialogue.emotion import lexicon
from shielded_recrl.dialogue.emotion.classifier import Classifier
from shielded_recrl.dialogue.emotion.goemotions import Comments, comments_file, read_comments
from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.emotion.scores import scores
from shielded_recrl.dialogue.settings import (
    AnnotateSettings,
    EmotionFitSettings,
    EmotionTrainSettings,
)
from shielded_recrl.errors import UserError
from shielded_recrl.files import sha256, write_json
from shielded_recrl.settings import section
from shielded_recrl.statistics import paired_bootstrap

PARTS = ("train", "dev", "test")
SEED = 0
DEFAULTS = EmotionTrainSettings()


def main(
    *,
    goemotions: Path,
    out: Path,
    settings: Annotated[EmotionTrainSettings, tyro.conf.arg(name="")] = DEFAULTS,
) -> None:
    """Train the emotion classifier on GoEmotions.

    Args:
        goemotions: folder with train, dev and test as .tsv or .tsv.gz.
        out: folder to write model.safetensors and report.json to.
        settings: the classifier's settings.
    """
    files = {part: comments_file(goemotions, part) for part in PARTS}
    comments = {part: read_comments(path, settings.max_bad_share) for part, path in files.items()}
    for part in PARTS:
        if not comments[part].single.any():
            raise UserError(
                f"{files[part]}: every comment shows several emotions; expected some with one"
            )
    classifier = Classifier.fit(
        comments["train"], comments["dev"], section(settings, EmotionFitSettings)
    )
    classifier.save(out)
    report = {
        "emotions": list(EMOTIONS),
        "comments": {
            part: {
                "sha256": sha256(files[part]),
                "read": len(comments[part].texts),
                "single": int(comments[part].single.sum()),
                "damaged": dict(sorted(comments[part].damaged.items())),
            }
            for part in PARTS
        },
        "settings": settings.model_dump(),
        "columns": len(classifier.columns),
        "test": compared(classifier, comments["train"], comments["test"], settings.bootstrap),
    }
    write_json(Path(out) / "report.json", report)
    test = report["test"]
    print(
        f"{out}: accuracy {test['classifier']['accuracy']['mean']:.3f}, macro-F1 "
        f"{test['classifier']['macro_f1']['mean']:.3f} on {test['classifier']['comments']} "
        f"comments; word list {test['lexicon']['accuracy']['mean']:.3f}, "
        f"{test['lexicon']['macro_f1']['mean']:.3f}; always {test['commonest']} "
        f"{test['majority']['accuracy']['mean']:.3f}, {test['majority']['macro_f1']['mean']:.3f}"
    )


def compared(
    classifier: Classifier, train: Comments, test: Comments, resamples: int
) -> dict[str, Any]:
    """Scores on test comments: classifier, word list, and the commonest emotion of train."""
    commonest = int(train.targets.sum(axis=0).argmax())
    found = {
        "classifier": classifier.probabilities(test.texts),
        "lexicon": lexicon.probabilities(test.texts),
        "majority": np.tile(np.eye(len(EMOTIONS))[commonest], (len(test.texts), 1)),
    }
    single = test.single
    right = {
        name: (rows.argmax(axis=1) == test.shown.argmax(axis=1))[single].astype(float)
        for name, rows in found.items()
    }
    known = set(train.texts)
    unseen = np.array([text not in known for text in test.texts])[single]
    keep = AnnotateSettings()
    return {
        "commonest": EMOTIONS[commonest],
        **{name: scores(rows, test.shown, keep, resamples, SEED) for name, rows in found.items()},
        "classifier_minus_lexicon": paired_bootstrap(
            right["classifier"] - right["lexicon"], resamples, SEED
        )._asdict(),
        # Short comments come back word for word.
        "not_in_train": {
            "comments": int(unseen.sum()),
            "accuracy": float(right["classifier"][unseen].mean()) if unseen.any() else None,
        },
    }
