"""Explanations against references: BLEU, ROUGE, and the sentence that does best for everybody.

In: texts and their references. Out: scores in percent.

    BLEU       sacrebleu's corpus BLEU: tokenizer 13a, case kept, exponential smoothing, several
               references (Papineni et al. 2002; Post 2018). BLEU-1 is its unigram form
    ROUGE      F of rouge-score, no stemming, the best reference of a text, mean over texts (Lin
               2004). Tokens and F are the library's; overlaps are counted here, once a reference
               and with a bit-parallel LCS, and equal the library's to the last digit
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from shielded_recrl.rl.text import ngrams

ROUGE = ("rouge_1", "rouge_2", "rouge_l")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
# Sentences looked at for the best constant one, those of them whose ROUGE-L is computed, and how
# many are compared with all references at once.
CANDIDATES, TRIED, BLOCK = 5000, 32, 256


class Counted(NamedTuple):
    """A text as ROUGE sees it."""

    tokens: tuple[str, ...]
    unigrams: Counter
    bigrams: Counter
    masks: dict[str, int]


class ReferenceTexts:
    """The references of n texts, counted once for all the texts that are compared with them."""

    def __init__(self, references: Sequence[Sequence[str]]):
        """
        Args:
            references: [n], at least one reference each.

        Raises:
            ValueError: there is no text, or one without a reference.
        """
        if not references or not all(references):
            raise ValueError("every text needs a reference, and there has to be a text")
        self.references = [tuple(texts) for texts in references]
        self._flat = [text for texts in self.references for text in texts]
        self._starts = np.cumsum([0, *map(len, self.references)])[:-1]
        self._counted: dict[str, Counted] = {}

    def __len__(self) -> int:
        return len(self.references)

    def bleu(self, texts: Sequence[str]) -> dict[str, float]:
        """Corpus BLEU-1 and BLEU-4 of n texts, in percent."""
        self._check(texts)
        score = self._bleu.corpus_score(list(texts), None)
        unigrams = self._bleu.compute_bleu(
            score.counts[:1],
            score.totals[:1],
            score.sys_len,
            score.ref_len,
            "exp",
            max_ngram_order=1,
        )
        return {"bleu_1": unigrams.score, "bleu_4": score.score}

    def rouge(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """ROUGE-1, -2 and -L F [n] of n texts, in percent: for each the best reference's."""
        self._check(texts)
        rows = [
            np.max([_rouge(one, self._count(text)) for text in several], axis=0)
            for one, several in zip(map(self._count, texts), self.references, strict=True)
        ]
        return dict(zip(ROUGE, 100 * np.stack(rows, axis=1), strict=True))

    @cached_property
    def best_constant(self) -> str:
        """The one text, of all sentences and whole texts of the references, with the highest mean
        ROUGE-L over all n.

        ROUGE-1 is never below ROUGE-L, and costs one sparse product for all candidates. So they are
        tried by falling ROUGE-1 until the next one's is below the best ROUGE-L: what is found is
        then the best of all. After `TRIED` the search ends anyway. Of more than `CANDIDATES`
        sentences, that many are looked at, evenly spaced in alphabetical order.

        Raises:
            ValueError: no reference has a word.
        """
        parts = {
            part
            for several in self.references
            for text in several
            for part in (text, *SENTENCE.split(text))
        }
        distinct = {self._count(part).tokens: part for part in sorted(parts, reverse=True)}
        distinct.pop((), None)
        if not distinct:
            raise ValueError("the references have no words")
        candidates = sorted(distinct.values())
        if len(candidates) > CANDIDATES:
            spread = np.linspace(0, len(candidates) - 1, CANDIDATES).astype(int)
            candidates = [candidates[place] for place in spread]
        bounds = self._mean_rouge_1(candidates)
        best, highest = candidates[0], -1.0
        for place in np.argsort(-bounds, kind="stable")[:TRIED]:
            # The two round differently.
            if bounds[place] < highest - 1e-9:
                break
            mean = self._mean_rouge_l(candidates[place])
            if mean > highest:
                best, highest = candidates[place], mean
        return best

    @cached_property
    def _bleu(self) -> Any:
        from sacrebleu.metrics import BLEU

        most = max(map(len, self.references))
        padded = [[*texts, *[None] * (most - len(texts))] for texts in self.references]
        # `force` only silences a remark on texts that look tokenised.
        return BLEU(references=list(zip(*padded, strict=True)), force=True)

    def _check(self, texts: Sequence[str]) -> None:
        if len(texts) != len(self):
            raise ValueError(f"{len(texts)} texts, but references of {len(self)}")

    def _count(self, text: str) -> Counted:
        if text not in self._counted:
            # Not through RougeScorer, whose module takes a second to import.
            from rouge_score.tokenize import tokenize

            tokens = tuple(tokenize(text, stemmer=None))
            masks: dict[str, int] = {}
            for place, token in enumerate(tokens):
                masks[token] = masks.get(token, 0) | 1 << place
            self._counted[text] = Counted(
                tokens, Counter(tokens), Counter(ngrams(tokens, 2)), masks
            )
        return self._counted[text]

    def _mean_rouge_1(self, candidates: Sequence[str]) -> np.ndarray:
        """Mean ROUGE-1 [c] of each candidate as the text of all n, in percent."""
        numbers: dict[tuple[str, int], int] = {}
        of_references = self._occurrences(self._flat, numbers)
        of_candidates = self._occurrences(candidates, numbers)
        of_references.resize(len(self._flat), len(numbers))
        lengths = of_references.sum(axis=1)
        means = []
        for start in range(0, len(candidates), BLOCK):
            block = of_candidates[start : start + BLOCK]
            overlap = (block @ of_references.T).toarray()
            scores = 2 * overlap / (block.sum(axis=1)[:, None] + lengths)
            means.append(np.maximum.reduceat(scores, self._starts, axis=1).mean(axis=1))
        return 100 * np.concatenate(means)

    def _mean_rouge_l(self, candidate: str) -> float:
        """Mean ROUGE-L of a candidate as the text of all n, in percent."""
        tokens = self._count(candidate).tokens
        counted = [self._count(text) for text in self._flat]
        longest = [lcs_length(tokens, one.masks, len(one.tokens)) for one in counted]
        lengths = np.array([len(one.tokens) for one in counted])
        scores = 2 * np.array(longest) / (len(tokens) + lengths)
        return 100 * float(np.maximum.reduceat(scores, self._starts).mean())

    def _occurrences(self, texts: Sequence[str], numbers: dict[tuple[str, int], int]) -> csr_array:
        """[texts, numbers] with a 1 for the first, second, ... occurrence of a token in a text, so
        that a product of two rows is their clipped overlap."""
        columns, ends = [], [0]
        for text in texts:
            for token, count in self._count(text).unigrams.items():
                columns += [numbers.setdefault((token, k), len(numbers)) for k in range(count)]
            ends.append(len(columns))
        shape = (len(texts), len(numbers))
        return csr_array((np.ones(len(columns)), columns, ends), shape=shape)


def _rouge(text: Counted, reference: Counted) -> tuple[float, float, float]:
    """ROUGE-1, -2 and -L F of a text against one reference, in [0, 1]."""
    from rouge_score.scoring import fmeasure

    m, n = len(text.tokens), len(reference.tokens)
    overlaps = (
        _overlap(text.unigrams, reference.unigrams),
        _overlap(text.bigrams, reference.bigrams),
        lcs_length(text.tokens, reference.masks, n),
    )
    sizes = ((m, n), (m - 1, n - 1), (m, n))
    one, two, longest = (
        fmeasure(overlap / max(size, 1), overlap / max(other, 1))
        for overlap, (size, other) in zip(overlaps, sizes, strict=True)
    )
    return one, two, longest


def _overlap(text: Mapping[Hashable, int], reference: Mapping[Hashable, int]) -> int:
    return sum(min(count, reference.get(gram, 0)) for gram, count in text.items())


def lcs_length(tokens: Sequence[str], masks: Mapping[str, int], size: int) -> int:
    """Length of the longest common subsequence of two token sequences.

    A row of the usual table in a few operations on one integer (Hyyrö 2004, Bit-parallel
    LCS-length computation revisited).

    >>> lcs_length("abcb", {"a": 0b001, "b": 0b010, "c": 0b100}, 3)  # and "abc"
    3

    Args:
        tokens: the one sequence.
        masks: token -> bits of its places in the other.
        size: length of the other.
    """
    whole = (1 << size) - 1
    row = whole
    for token in tokens:
        if hits := row & masks.get(token, 0):
            row = (row + hits | row - hits) & whole
    return size - row.bit_count()
