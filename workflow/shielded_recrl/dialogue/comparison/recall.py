"""What training the response LM cannot move, and what it can.

In: recommended films, what was named in truth, responses. Out:

    recall   share of the recommender's new films that are among the first k recommended: stage 2's,
             computed from `recommendations.parquet` before the training and when it is evaluated
    named    share of them that a response names, its k-th slot being the k-th recommended film: this
             one depends on how many slots the LM writes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shielded_recrl.dialogue.corpus.dialogues import SLOT, Dialogue, Dialogues, Target, targets
from shielded_recrl.dialogue.response.prompts import load_recommendations
from shielded_recrl.errors import UserError
from shielded_recrl.files import sha256
from shielded_recrl.statistics import Interval, paired_bootstrap

DEPTHS = (1, 10)
# Of the bootstrap of what is served.
SEED = 0

Recommended = Mapping[tuple[int, int], Sequence[int]]


def new_targets(dialogues: Sequence[Dialogue], recommended: Recommended) -> list[Target]:
    """Films that recommenders named first, in turns that were recommended for."""
    return [
        target
        for target in targets(dialogues)
        if not target.is_repeat and (target.dialogue, target.turn) in recommended
    ]


def recall(
    recommended: Recommended, wanted: Sequence[Target], resamples: int, seed: int
) -> dict[str, Any]:
    """Recall at each depth with its interval, dialogues drawn, and how many films are `targets`.

    Raises:
        UserError: nothing is wanted.
    """
    if not wanted:
        raise UserError("dialogue: no new film is named in test turns; give more dialogues")
    places = [list(recommended[one.dialogue, one.turn]) for one in wanted]
    dialogues = np.array([one.dialogue for one in wanted])
    found = {
        f"recall@{depth}": paired_bootstrap(
            np.array(
                [one.item in films[:depth] for one, films in zip(wanted, places, strict=True)]
            ),
            resamples,
            seed,
            dialogues,
        )._asdict()
        for depth in DEPTHS
    }
    return {**found, "targets": len(wanted)}


def served(path: Path, dialogues: Dialogues, resamples: int) -> dict[str, Any]:
    """What a file of recommendations is worth on test dialogues: `recall`, and its `sha256`.

    Whoever asks, the same file has the same intervals.

    Raises:
        UserError: it is missing or damaged, or nothing is wanted.
    """
    films = load_recommendations(path, dialogues)
    wanted = new_targets(dialogues.split("test"), films)
    return {**recall(films, wanted, resamples, SEED), "sha256": sha256(path)}


def statement(before: Mapping[str, Any], after: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What evaluation says of the recommender: the same before the training and now.

    Args:
        before: recall and digest before the policy was trained.
        after: the same now; its intervals may be of another number of resamples.
        path: recommendations.parquet.

    Raises:
        UserError: they differ, so somebody wrote the file meanwhile.
    """
    if _numbers(before) != _numbers(after):
        raise UserError(
            f"{path}: changed since the policy was trained; nothing of this stage writes it, so run "
            "recommend, train and evaluate one after the other"
        )
    return {"before": dict(before), "after": dict(after), "equal": True}


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """All but the intervals."""
    return {
        name: value["mean"] if isinstance(value, Mapping) else value
        for name, value in found.items()
    }


def named(
    recommended: Recommended, wanted: Sequence[Target], texts: Mapping[tuple[int, int], str]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each film wanted in the answered turns is named, and its dialogue; both [k].

    Args:
        recommended: films of each turn.
        wanted: what recommenders named in truth.
        texts: responses in slot form, by dialogue and turn.
    """
    rows = [
        (
            float(one.item in recommended[key][: texts[key].count(SLOT)]),
            one.dialogue,
        )
        for one in wanted
        if (key := (one.dialogue, one.turn)) in texts
    ]
    values = np.array(rows, dtype=float).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def share(values: np.ndarray, dialogues: np.ndarray, resamples: int, seed: int) -> Interval | None:
    """Mean with its interval; None of nothing."""
    return paired_bootstrap(values, resamples, seed, dialogues) if len(values) else None
