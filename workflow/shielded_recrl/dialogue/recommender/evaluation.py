"""How any system ranks what the recommenders of dialogues named, and what it would name itself.

In: a system's scores for contexts. Out: metrics of the targets, by group, and lists of new items.

    all         every target, among all items
    repeats     targets that were named before, among all items
    new         the others, among the items that no earlier turn named

All items are those of the catalogue, in train or not. Two new films of one turn are a target each,
and either is a candidate where the other is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp

from shielded_recrl.dialogue.corpus.dialogues import RECOMMENDER, Dialogue
from shielded_recrl.dialogue.recommender.baselines import Score, baselines
from shielded_recrl.dialogue.recommender.contexts import Context, Emotions, Sample, context_before
from shielded_recrl.dialogue.recommender.evidence import count
from shielded_recrl.dialogue.recommender.fusion import Recommender
from shielded_recrl.dialogue.recommender.items import Catalogue
from shielded_recrl.dialogue.recommender.metrics import Ranked, differences, measure, rank_of
from shielded_recrl.dialogue.recommender.training import BLOCK, Knowledge

GROUPS = ("all", "repeats", "new")
LISTED = 10
# Scores [B, I+1] a block at a time, with the places of their contexts; padding may score anything.
System = Callable[[Sequence[Context]], Iterator[tuple[list[int], np.ndarray]]]


def trained_system(model: Recommender, knowledge: Knowledge) -> System:
    """A model; train dialogues are seen through the counts of other folds."""

    def system(contexts: Sequence[Context]) -> Iterator[tuple[list[int], np.ndarray]]:
        for places, scores in knowledge.scores(model, contexts):
            yield places, scores.numpy()

    return system


def counted_system(score: Score) -> System:
    """A baseline."""

    def system(contexts: Sequence[Context]) -> Iterator[tuple[list[int], np.ndarray]]:
        for start in range(0, len(contexts), BLOCK):
            places = list(range(start, min(start + BLOCK, len(contexts))))
            yield places, score([contexts[place] for place in places])

    return system


def counted_systems(dialogues: Sequence[Dialogue], catalogue: Catalogue) -> dict[str, System]:
    """Every baseline, from the counts of these dialogues."""
    found = baselines(count(dialogues, catalogue))
    return {name: counted_system(score) for name, score in found.items()}


def rank(system: System, samples: Sequence[Sample]) -> dict[str, Ranked]:
    """Answers to all samples, ``all`` and ``new``: with and without the named as candidates.

    The score kept of a target is the logarithm of its share under a softmax over its candidates: a
    plain score would not be comparable between contexts.
    """
    kinds = ("all", "new")
    ranks = {kind: np.zeros(len(samples), dtype=np.int64) for kind in kinds}
    shares = {kind: np.zeros(len(samples)) for kind in kinds}
    for places, block in system([sample.context for sample in samples]):
        for place, row in zip(places, block.astype(np.float64), strict=True):
            sample = samples[place]
            for kind in kinds:
                barred = sorted(sample.context.named) if kind == "new" else []
                if sample.item in barred:
                    continue
                ranks[kind][place] = rank_of(row, sample.item, barred)
                rest = row.copy()
                rest[[0, *barred]] = -np.inf
                shares[kind][place] = row[sample.item] - logsumexp(rest)
    return {kind: Ranked(ranks[kind], shares[kind]) for kind in kinds}


def evaluate(
    systems: Mapping[str, System],
    samples: Sequence[Sample],
    ours: str,
    resamples: int,
) -> dict[str, Any]:
    """Metrics of systems by group, and how far one of them is ahead of each other.

    Returns:
        group -> number of targets, metrics by system, and by other system the paired differences.
    """
    liked = np.array([sample.liked for sample in samples])
    clusters = np.array([sample.context.dialogue for sample in samples])
    repeat = np.array([sample.is_repeat for sample in samples], dtype=bool)
    answers = {name: rank(system, samples) for name, system in systems.items()}
    report = {}
    for group in GROUPS:
        rows = np.flatnonzero(
            {"all": np.ones_like(repeat), "repeats": repeat, "new": ~repeat}[group]
        )
        kind = "new" if group == "new" else "all"
        some = {name: answer[kind].rows(rows) for name, answer in answers.items()}
        report[group] = {
            "targets": len(rows),
            "dialogues": len(np.unique(clusters[rows])),
            "liked": int((liked[rows] == 1).sum()),
            "disliked": int((liked[rows] == 0).sum()),
            "systems": {
                name: measure(answer, liked[rows], clusters[rows], resamples)
                for name, answer in some.items()
            },
            "ahead_of": {
                name: differences(some[ours], answer, liked[rows], clusters[rows], resamples)
                for name, answer in some.items()
                if name != ours
            },
        }
    return report


def recommendations(
    system: System, dialogues: Iterable[Dialogue], emotions: Emotions
) -> list[tuple[int, int, int, int]]:
    """Dialogue, turn, position from 1, item: the best new items for each turn of the recommender.

    Turns that open a dialogue have no context, and so no row. Of equal scores the lower item
    comes first.
    """
    places = [
        (dialogue, number)
        for dialogue in dialogues
        for number, turn in enumerate(dialogue.turns)
        if number and turn.role == RECOMMENDER
    ]
    contexts = [context_before(dialogue, number, emotions) for dialogue, number in places]
    lists: dict[int, list[int]] = {}
    for some, block in system(contexts):
        for place, row in zip(some, block.copy(), strict=True):
            barred = [0, *contexts[place].named]
            row[barred] = -np.inf
            best = np.argsort(-row, kind="stable")[: min(LISTED, len(row) - len(barred))]
            lists[place] = best.tolist()
    return [
        (dialogue.index, number, position, item)
        for place, (dialogue, number) in enumerate(places)
        for position, item in enumerate(lists[place], start=1)
    ]
