"""Explanations measured as texts: against references, against each other, and beside two controls.

In: one text a request, before and after training, and where the source has some, what people wrote
about the items. Out: a dictionary for evaluation.json. `rl evaluate` calls one function,

    "texts": text_metrics_report(
        texts[0], texts[last], slate.requests, reviews, slate.users, settings.bootstrap, roles_seed
    )

with reviews = reviews.parquet of the dataset, or None; it reads nothing else and keeps no state.
What each metric is stands in `overlap` (BLEU, ROUGE), `bertscore` and `features` (USR, FMR, FCR,
DIV, distinct-n).

A score means little without its controls. `shuffled`: the same texts against the references (and
features) of another item. `constant`: one sentence for everybody, that sentence of the references
which does best. It is chosen on the references it is then scored on, so it is a high bar. Whatever
is not well above both is not about its pair.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from shielded_recrl.explainer.prompts import Request
from shielded_recrl.rl.evaluation.bertscore import BERTScoreModel, bertscore
from shielded_recrl.rl.evaluation.features import Features, distinct, unique_sentence_ratio
from shielded_recrl.rl.evaluation.overlap import ROUGE, ReferenceTexts
from shielded_recrl.rl.evaluation.references import count_reviews, load_references
from shielded_recrl.statistics import paired_bootstrap

AGAINST = ("bleu_1", "bleu_4", *ROUGE, "bertscore")
NO_REVIEWS = "the source has no reviews"
NO_REFERENCES = "fewer than two texts are about an item with a review"


def derangement(labels: Sequence[Hashable], rng: np.random.Generator) -> np.ndarray:
    """A random permutation [n] that leaves no place where it is, and gives it another label.

    Places are laid in a row at random, those of one label together, and moved on by the size of the
    largest group. Where one label has more than half of the places, some meet it again, as few as
    can be: `shuffle` leaves those out.

    Args:
        labels: of the places; at least two.
        rng: source of the order.

    Raises:
        ValueError: there are less than two places.
    """
    n = len(labels)
    if n < 2:
        raise ValueError("a single place cannot be moved")
    groups: dict[Hashable, list[int]] = {}
    for place in rng.permutation(n):
        groups.setdefault(labels[place], []).append(int(place))
    row = np.concatenate(list(groups.values()))
    moved = np.empty(n, dtype=np.int64)
    moved[row] = np.roll(row, -min(max(map(len, groups.values())), n - 1))
    return moved


def shuffle(labels: Sequence[Hashable], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places [k] and the place [k] of another label that each is moved to, by the latter.

    k is n where no label has more than half of the places, else as many as can be moved so, which
    may be none.

    Args:
        labels: of the n places; at least two.
        rng: source of the order.

    Raises:
        ValueError: there are less than two places.
    """
    moved = derangement(labels, rng)
    places = np.argsort(moved)
    apart = [labels[place] != labels[other] for other, place in enumerate(places)]
    return places[apart], np.flatnonzero(apart)


def text_metrics_report(
    texts_before: Sequence[str],
    texts_after: Sequence[str],
    requests: Sequence[Request],
    reviews: Path | None,
    users: np.ndarray,
    resamples: int,
    seed: int,
    model: BERTScoreModel | None = None,
) -> dict[str, Any]:
    """All metrics of this module before and after training, with their controls.

    Args:
        texts_before: [n] texts of the untrained adapter.
        texts_after: [n] texts of the trained one.
        requests: [n] what was to be explained.
        reviews: reviews.parquet, or None.
        users: [n] user of each text, drawn together by the bootstrap.
        resamples: of the bootstrap.
        seed: of references, derangement and bootstrap.
        model: computes BERTScore, if given.

    Returns:
        `texts`, `own` (texts whose reference is the user's own review), `reason` (why there is
        nothing against references, or null), and for `before` and `after` the number of texts with
        `references` and each metric, with `shuffled`, `constant` (and its `sentence`) and
        `rouge_l_minus_shuffled`, the mean difference with its user-clustered 95% interval. What
        cannot be evaluated is null. `shuffled_left_out` counts the texts that no other item was
        left for, among those shuffled for `fmr` and among those with `references`.

    Raises:
        ValueError: there are less than two texts.
        UserError: reviews.parquet or the model cannot be read.
    """
    requests, users = list(requests), np.asarray(users)
    pairs = [(request.user, request.item) for request in requests]
    batches = {"before": list(texts_before), "after": list(texts_after)}
    found = load_references(reviews, pairs, seed) if reviews else [None] * len(pairs)
    rows = [place for place, references in enumerate(found) if references]
    judged = len(rows) > 1
    rng = np.random.default_rng([seed, 4])
    features = Features(requests)
    shuffled = shuffle([item for _, item in pairs], rng)
    report = {
        "texts": len(pairs),
        "shuffled_left_out": {"fmr": len(pairs) - len(shuffled[0]), "references": None},
        "own": sum(found[row].own for row in rows),
        "reason": None if judged else _reason(reviews),
        **{
            when: {
                "references": len(rows),
                **dict.fromkeys(AGAINST),
                **features.metrics(texts),
                "usr": unique_sentence_ratio(texts),
                "distinct_1": distinct(texts, 1),
                "distinct_2": distinct(texts, 2),
                "rouge_l_minus_shuffled": None,
                "shuffled": {**dict.fromkeys(AGAINST), "fmr": features.matching(texts, *shuffled)},
                "constant": None,
            }
            for when, texts in batches.items()
        },
    }
    if not judged:
        return report
    references = ReferenceTexts([found[row].texts for row in rows])
    places, others = shuffle([pairs[row][1] for row in rows], rng)
    report["shuffled_left_out"]["references"] = len(rows) - len(places)
    sentence = references.best_constant
    written = {when: [texts[row] for row in rows] for when, texts in batches.items()}
    compared = [(texts, references) for texts in (*written.values(), [sentence] * len(rows))]
    if len(places):
        kept = references
        if len(places) < len(rows):
            kept = ReferenceTexts([references.references[place] for place in others])
        # References stay where they are counted, and the texts are moved.
        compared += [([texts[place] for place in places], kept) for texts in written.values()]
    scores = _against(compared, model)
    moved = scores[3:] or [None, None]
    constant = {**_means(scores[2]), "sentence": sentence}
    everywhere = features.matching([sentence] * len(pairs))
    for when, paired, other in zip(batches, scores[:2], moved, strict=True):
        report[when] |= {
            **_means(paired),
            "constant": {**dict.fromkeys(AGAINST), **constant, "fmr": everywhere},
        }
        if other is None:
            continue
        order = np.argsort(places)
        gap = (paired["rouge_l"][places] - other["rouge_l"])[order]
        interval = paired_bootstrap(gap, resamples, seed, users[rows][places[order]])
        report[when] |= {
            "rouge_l_minus_shuffled": interval._asdict(),
            "shuffled": report[when]["shuffled"] | _means(other),
        }
    return report


def _against(
    compared: Sequence[tuple[Sequence[str], ReferenceTexts]], model: BERTScoreModel | None
) -> list[dict[str, Any]]:
    """Scores of each list of texts against its references."""
    scores = [{**own.bleu(texts), **own.rouge(texts)} for texts, own in compared]
    if model:
        lists, references = zip(*compared, strict=True)
        # Once for all: every call of bert-score loads the model, and embeds no text twice.
        flat = bertscore(
            list(chain(*lists)), list(chain(*(own.references for own in references))), model
        )
        ends = np.cumsum([len(texts) for texts in lists])[:-1]
        for score, values in zip(scores, np.split(flat, ends), strict=True):
            score["bertscore"] = values
    return scores


def _reason(reviews: Path | None) -> str:
    return NO_REFERENCES if reviews and count_reviews(reviews) else NO_REVIEWS


def _means(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in scores.items()}
