"""Responses measured as texts, in the standard form and in that of the ECR code.

In: responses and gold responses in slot form, the dialogue of each. Out: a dictionary of metrics,
each an estimate with its 95% interval; dialogues, not responses, are drawn.

    bleu_n           sacrebleu's corpus BLEU with orders 1..n (Papineni et al. 2002; Post 2018):
                     tokenizer 13a, case kept, exponential smoothing, in percent
    distinct_n       distinct n-grams over all n-grams (Li et al. 2016) of lower-case words
    item_ratio       slots a response
    words            words a response
    emotion_match    share of responses with an emotion of their gold response, where that has one
    ecr_bleu_n       mean of BP p_n: the precision of n-grams alone, times the brevity penalty, on
                     tokens between blanks, without smoothing
    ecr_distinct_n   distinct n-grams of these tokens, over responses: may be above 1
    ecr_item_ratio   slots, over responses

A slot is one token in all of them. The ECR forms divide by the number of responses that are not
empty (Zhang et al. 2024, "Towards Empathetic Conversational Recommender Systems", evaluate_conv.py):
a system that says nothing half of the time loses nothing by it. So they serve to compare with
published numbers, and the standard forms to judge.

Intervals come from a bootstrap; those of distinct_n from a jackknife, since a resample with the same
dialogue twice has fewer distinct n-grams than any sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from shielded_recrl.audit.resampling import draws, jackknife_interval
from shielded_recrl.dialogue.corpus.dialogues import SLOT
from shielded_recrl.rl.text import ngrams, words
from shielded_recrl.statistics import Interval

ORDERS = (1, 2, 3, 4)
# Stands for a slot where a tokenizer would split `SLOT`: a word that nobody writes.
SLOT_WORD = "MovieSlot"
# Dialogues are left out one by one, of many in as many groups.
PARTS = 500
EMOTIONS = "emotion_match"

Report = dict[str, dict[str, float] | None]
Labels = Sequence[Collection[str]]


class Grams(NamedTuple):
    """What distinct-n counts.

    Attributes:
        distinct: distinct n-grams of all responses.
        lone: [G], of these, the ones found in no other part of the dialogues.
        total: [G], what is divided by, of each part.
    """

    distinct: int
    lone: np.ndarray
    total: np.ndarray

    @property
    def ratio(self) -> float:
        """Distinct n-grams over the total; NaN where there is none."""
        return self.distinct / self.total.sum() if self.total.any() else math.nan

    @property
    def without(self) -> np.ndarray:
        """The ratio [G] of all parts but one."""
        left = self.total.sum() - self.total
        return np.divide(self.distinct - self.lone, left, out=np.zeros(len(left)), where=left > 0)


class ResponseMetrics:
    """What one system said, counted once."""

    def __init__(
        self,
        responses: Sequence[str],
        golds: Sequence[str],
        dialogues: Sequence[int],
        emotions: tuple[Labels, Labels] | None = None,
    ):
        """
        Args:
            responses: [n] in slot form.
            golds: [n] in slot form.
            dialogues: [n] dialogue of each.
            emotions: labels of the responses and of the gold responses, [n] each; without them
                there is no `emotion_match`.

        Raises:
            ValueError: they differ in number, or are of fewer than two dialogues.
        """
        labels, self._member = np.unique(np.asarray(dialogues), return_inverse=True)
        if not len(responses) == len(golds) == len(self._member):
            raise ValueError(
                f"{len(responses)} responses, {len(golds)} gold ones, {len(self._member)} dialogues"
            )
        if len(labels) < 2:
            raise ValueError("intervals need responses of two dialogues at least")
        if emotions is not None and {len(part) for part in emotions} != {len(responses)}:
            raise ValueError(f"{len(responses)} responses, {[*map(len, emotions)]} label lists")
        self.dialogues = labels
        columns = [
            bleu_counts(responses, golds),
            ecr_scores(responses, golds),
            plain_counts(responses),
            emotion_hits(*emotions) if emotions else np.zeros((len(responses), 2)),
        ]
        self._sums = self._by_dialogue(np.concatenate(columns, axis=1))
        spoken = np.array([bool(text.split()) for text in responses], dtype=float)
        self._grams = {}
        for n in ORDERS:
            mine = [ngrams(words(slots_as_words(text)), n) for text in responses]
            sizes = np.array([len(grams) for grams in mine], dtype=float)
            self._grams[f"distinct_{n}"] = self._count(mine, sizes)
            mine = [ngrams(text.split(), n) for text in responses]
            self._grams[f"ecr_distinct_{n}"] = self._count(mine, spoken)

    def report(self, resamples: int = 1000, seed: int = 0) -> Report:
        """All metrics with their intervals; null where a metric has nothing to measure."""
        times = draws(len(self.dialogues), resamples, seed)
        found = {
            name: _interval(float(value), drawn)
            for (name, value), drawn in zip(
                _metrics(self._sums.sum(axis=0)).items(),
                _metrics(times @ self._sums).values(),
                strict=True,
            )
        }
        for name, grams in self._grams.items():
            found[name] = _jackknife(grams.ratio, grams.without)
        return found

    def minus(self, other: ResponseMetrics, resamples: int = 1000, seed: int = 0) -> Report:
        """Each metric less that of another system on the same dialogues, drawn together.

        Raises:
            ValueError: the dialogues differ.
        """
        if not np.array_equal(self.dialogues, other.dialogues):
            raise ValueError("the two systems answered other dialogues")
        times = draws(len(self.dialogues), resamples, seed)
        whole, others = _metrics(self._sums.sum(axis=0)), _metrics(other._sums.sum(axis=0))
        drawn, of_others = _metrics(times @ self._sums), _metrics(times @ other._sums)
        found = {
            name: _interval(float(whole[name] - others[name]), drawn[name] - of_others[name])
            for name in whole
        }
        for name, grams in self._grams.items():
            theirs = other._grams[name]
            found[name] = _jackknife(grams.ratio - theirs.ratio, grams.without - theirs.without)
        return found

    def _by_dialogue(self, columns: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(self.dialogues), columns.shape[1]))
        np.add.at(sums, self._member, columns)
        return sums

    def _count(self, grams: Iterable[Sequence[tuple]], sizes: np.ndarray) -> Grams:
        parts = min(len(self.dialogues), PARTS)
        part_of = self._member % parts
        where: dict[tuple, int] = {}
        for part, mine in zip(part_of.tolist(), grams, strict=True):
            for gram in mine:
                # -1: in more than one part.
                where[gram] = part if where.get(gram, part) == part else -1
        lone = Counter(where.values())
        return Grams(
            len(where),
            np.array([lone[part] for part in range(parts)]),
            np.bincount(part_of, weights=sizes, minlength=parts),
        )


def slots_as_words(text: str) -> str:
    """A response in which tokenizers find each slot to be one word."""
    return text.replace(SLOT, SLOT_WORD)


def bleu_counts(responses: Sequence[str], golds: Sequence[str]) -> np.ndarray:
    """What corpus BLEU adds up, [n, 10]: matches and n-grams of orders 1..4, and both lengths."""
    from sacrebleu.metrics import BLEU

    # `force` only silences a remark on texts that look tokenised.
    bleu = BLEU(max_ngram_order=ORDERS[-1], force=True)
    rows = []
    for response, gold in zip(responses, golds, strict=True):
        one = bleu.corpus_score([slots_as_words(response)], [[slots_as_words(gold)]])
        rows.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    return np.array(rows, dtype=float).reshape(-1, 2 * len(ORDERS) + 2)


def bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """sacrebleu's corpus BLEU [...] of summed counts [..., 10], with orders 1..order, in percent."""
    correct, totals = sums[..., :order], sums[..., len(ORDERS) : len(ORDERS) + order]
    system, reference = sums[..., -2], sums[..., -1]
    misses = correct == 0
    # Each order without a match counts as half as many as the one before (its `exp` smoothing).
    matches = np.where(misses, 0.5 ** misses.cumsum(axis=-1), correct)
    defined = (totals > 0).all(axis=-1) & ~misses.all(axis=-1)
    precision = np.exp(np.log(matches / np.maximum(totals, 1)).mean(axis=-1))
    brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(system, 1)))
    return np.where(defined, 100 * brevity * precision, 0.0)


def ecr_scores(responses: Sequence[str], golds: Sequence[str]) -> np.ndarray:
    """Per response [n, 5]: ECR's BLEU of each order, and whether it is not empty."""
    return np.array(
        [
            [*(ecr_bleu(response, gold, n) for n in ORDERS), bool(response.split())]
            for response, gold in zip(responses, golds, strict=True)
        ],
        dtype=float,
    ).reshape(-1, len(ORDERS) + 1)


def ecr_bleu(response: str, gold: str, order: int) -> float:
    """nltk's sentence BLEU with all weight on one order and no smoothing, in [0, 1].

    >>> round(ecr_bleu("a b c", "a b d e", 2), 4)  # 1 of 2 bigrams, exp(1 - 4 / 3)
    0.3583
    """
    mine, wanted = response.split(), gold.split()
    # Without a matching word it is 0, whatever the order; so it is for an empty response.
    if not set(mine) & set(wanted):
        return 0.0
    grams = Counter(ngrams(mine, order))
    known = Counter(ngrams(wanted, order))
    matches = sum(min(count, known[gram]) for gram, count in grams.items())
    brevity = math.exp(min(0.0, 1 - len(wanted) / len(mine)))
    return brevity * matches / max(1, grams.total())


def plain_counts(responses: Sequence[str]) -> np.ndarray:
    """Slots and words of each response and 1, [n, 3]."""
    rows = [[text.count(SLOT), len(words(slots_as_words(text))), 1] for text in responses]
    return np.array(rows, dtype=float).reshape(-1, 3)


def emotion_hits(responses: Labels, golds: Labels) -> np.ndarray:
    """[n, 2]: whether a response has a label of its gold one, and whether that has any."""
    return np.array(
        [
            [bool(set(mine) & set(wanted)), bool(wanted)]
            for mine, wanted in zip(responses, golds, strict=True)
        ],
        dtype=float,
    ).reshape(-1, 2)


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics [...] of summed counts [..., 20]."""
    counts, rest = np.split(sums, [2 * len(ORDERS) + 2], axis=-1)
    *ecr, spoken, slots, length, every, hits, labelled = np.moveaxis(rest, -1, 0)
    return {
        **{f"bleu_{n}": bleu(counts, n) for n in ORDERS},
        **{f"ecr_bleu_{n}": _ratio(total, spoken) for n, total in zip(ORDERS, ecr, strict=True)},
        "item_ratio": _ratio(slots, every),
        "ecr_item_ratio": _ratio(slots, spoken),
        "words": _ratio(length, every),
        EMOTIONS: _ratio(hits, labelled),
    }


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.asarray(above), np.asarray(below)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _interval(estimate: float, drawn: np.ndarray) -> dict[str, float] | None:
    if math.isnan(estimate):
        return None
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(estimate, float(low), float(high))._asdict()


def _jackknife(estimate: float, without: np.ndarray) -> dict[str, float] | None:
    return None if math.isnan(estimate) else jackknife_interval(estimate, without)
