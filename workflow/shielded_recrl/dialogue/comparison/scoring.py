"""Numbers of the comparison: each system's, and paired differences between systems.

In: what each system said and how it was scored. Out: dictionaries for evaluation.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shielded_recrl.dialogue.comparison.contestants import GOLD, PAIRS, pair_name
from shielded_recrl.dialogue.comparison.recall import Recommended, named, share
from shielded_recrl.dialogue.corpus.dialogues import Target
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.response.metrics import ResponseMetrics
from shielded_recrl.dialogue.response.prompts import ResponseRequest
from shielded_recrl.statistics import paired_bootstrap

# Compared with itself, a gold response says nothing.
OF_ITSELF = ("bleu_", "ecr_bleu_", "emotion_match")


class Answers(NamedTuple):
    """What one system said.

    Attributes:
        texts: [n] in slot form.
        scores: judge -> [n, 5] in the order of `HEADS`; NaN where the judge gave no answer.
        emotions: [n] labels of each.
    """

    texts: list[str]
    scores: dict[str, np.ndarray]
    emotions: list[tuple[str, ...]]


def report(
    requests: Sequence[ResponseRequest],
    answers: Mapping[str, Answers],
    recommended: Recommended,
    wanted: Sequence[Target],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """`systems` and `comparisons` of evaluation.json.

    Args:
        requests: [n] the turns.
        answers: of each system.
        recommended: films of each turn.
        wanted: new films that recommenders named in truth.
        resamples: of the bootstraps, in which whole dialogues are drawn.
        seed: of the bootstraps.
    """
    dialogues = np.array([request.dialogue for request in requests])
    keys = [(request.dialogue, request.turn) for request in requests]
    golds = answers[GOLD]
    metrics = {
        name: ResponseMetrics(
            said.texts, golds.texts, dialogues.tolist(), (said.emotions, golds.emotions)
        )
        for name, said in answers.items()
    }
    hits = {
        name: named(recommended, wanted, dict(zip(keys, said.texts, strict=True)))
        for name, said in answers.items()
    }

    def hit(values: np.ndarray, where: np.ndarray) -> dict[str, float] | None:
        found = share(values, where, resamples, seed)
        return found and found._asdict()

    return {
        "systems": {
            name: {
                "scores": means(said.scores, dialogues, resamples, seed),
                "text": {
                    key: value
                    for key, value in metrics[name].report(resamples, seed).items()
                    if name != GOLD or not key.startswith(OF_ITSELF)
                },
                "named": hit(*hits[name]),
            }
            for name, said in answers.items()
        },
        "comparisons": {
            pair_name(one, other): {
                "scores": means(
                    {
                        judge: values - answers[other].scores[judge]
                        for judge, values in answers[one].scores.items()
                    },
                    dialogues,
                    resamples,
                    seed,
                ),
                "text": metrics[one].minus(metrics[other], resamples, seed),
                "named": hit(hits[one][0] - hits[other][0], hits[one][1]),
            }
            for one, other in PAIRS
        },
    }


def means(
    scores: Mapping[str, np.ndarray], dialogues: np.ndarray, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Mean of each head of each judge over the rows that it answered; None below two dialogues.

    Args:
        scores: judge -> [n, 5], NaN where there is no answer.
        dialogues: [n], drawn as a whole.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    def mean(values: np.ndarray) -> dict[str, float] | None:
        there = ~np.isnan(values)
        if len(np.unique(dialogues[there])) < 2:
            return None
        return paired_bootstrap(values[there], resamples, seed, dialogues[there])._asdict()

    return {
        judge: {head: mean(column) for head, column in zip(HEADS, values.T, strict=True)}
        for judge, values in scores.items()
    }
