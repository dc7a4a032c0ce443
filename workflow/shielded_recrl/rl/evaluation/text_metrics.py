"""Explanations measured as texts: against references, against each other, and beside two controls.

In: one text a request, before and after training, and where the source has some, what people wrote
about the items. Out: a dictionary for evaluation.json. `rl evaluate` calls one function,

    "texts": text_metrics_report(
        texts[0], texts[last], slate.requests, reviews, slate.users, settings.bootstrap, roles_seed
    )

with reviews = reviews.parquet of the dataset, or None; it reads nothing else and keeps no state.

Against references (`bleu_1`, `bleu_4`, `rouge_1`, `rouge_2`, `rouge_l`, `bertscore`; in percent):

    BLEU       sacrebleu's corpus BLEU: tokenizer 13a, case kept, exponential smoothing, several
               references (Papineni et al. 2002; Post 2018). BLEU-1 is its unigram form
    ROUGE      F of rouge-score, no stemming, the best reference of a text, mean over texts (Lin
               2004). Tokens and F are the library's; overlaps are counted here, once a reference
               and with a bit-parallel LCS, and equal the library's to the last digit
    BERTScore  F of bert-score (Zhang et al. 2020), only where that package is installed and a
               folder with a model is given. An empty text scores 0

Against each other and the items (Li et al. 2020, NETE; 2021, PETER; 2023, PEPLER):

    usr    unique sentence ratio: distinct texts over texts
    fmr    feature matching ratio: share of texts that name a feature of their own item
    fcr    feature coverage ratio: features named in any text over all features
    div    feature diversity: features that two texts share, mean over all pairs; less is more
           diverse. Counted, not compared: sum over features f of C(n_f, 2), over C(N, 2)
    distinct_1, distinct_2   distinct n-grams over n-grams, of all texts together (Li et al. 2016)

The papers mine features from reviews, one a pair. Here the features of an item are what the prompt
tells of it: title and categories, found as names the way claims are.

A score means little without its controls. `shuffled`: the same texts against the references (and
features) of another item. `constant`: one sentence for everybody, that sentence of the references
which does best. It is chosen on the references it is then scored on, so it is a high bar. Whatever
is not well above both is not about its pair.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence, Set
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.prompts import Item, Request, short_title
from shielded_recrl.rl.evaluation.references import count_reviews, load_references
from shielded_recrl.rl.evaluation.simulator import ClaimIndex, Phrase
from shielded_recrl.rl.text import ngrams, words, written_as_names
from shielded_recrl.statistics import paired_bootstrap

ROUGE = ("rouge_1", "rouge_2", "rouge_l")
AGAINST = ("bleu_1", "bleu_4", *ROUGE, "bertscore")
SENTENCE = re.compile(r"(?<=[.!?])\s+")
# Sentences looked at for the best constant one, those of them whose ROUGE-L is computed, and how
# many are compared with all references at once.
CANDIDATES, TRIED, BLOCK = 5000, 32, 256
# bert-score cuts at the tokenizer's own bound; some tokenizers have none and say 1e30.
MAX_TOKENS = 1 << 20
NO_REVIEWS = "the source has no reviews"
NO_REFERENCES = "fewer than two texts are about an item with a review"


class BERTScoreModel(NamedTuple):
    """What BERTScore is computed with: a local folder in transformers format, and the layer."""

    folder: Path
    layer: int


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


def bertscore(
    texts: Sequence[str], references: Sequence[Sequence[str]], model: BERTScoreModel
) -> np.ndarray:
    """BERTScore F [n] of n texts, in percent: for each the best reference's, no idf, no rescaling.

    bert-score 0.3.13 runs with transformers 5, but for empty texts: those score 0 here, as they do
    there with transformers 4.

    Raises:
        UserError: see `check_bertscore`.
    """
    _check_tokenizer(model)
    from bert_score import score

    values = np.zeros(len(texts))
    filled = [place for place, text in enumerate(texts) if text.strip()]
    if filled:
        found = score(
            [texts[place] for place in filled],
            [[text for text in references[place] if text.strip()] for place in filled],
            model_type=str(model.folder),
            num_layers=model.layer,
        )
        values[filled] = 100 * found[2].double().numpy()
    return values


def check_bertscore(model: BERTScoreModel) -> None:
    """Load what BERTScore is computed with once, so that a bad folder is found before it is needed.

    Raises:
        UserError: bert-score is not installed, or the folder has no model, one with fewer layers, or
            a tokenizer without a longest text.
    """
    _check_tokenizer(model)
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        layers = AutoModel.from_pretrained(model.folder).config.num_hidden_layers
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _no("model", model.folder, error) from error
    if model.layer > layers:
        raise UserError(
            f"bertscore_layer is {model.layer}, but the model in {model.folder} has {layers} "
            "layers; lower it"
        )


def _check_tokenizer(model: BERTScoreModel) -> None:
    if find_spec("bert_score") is None:
        raise UserError("BERTScore needs the package bert-score; pip install bert-score==0.3.13")
    from transformers import AutoTokenizer

    try:
        longest = AutoTokenizer.from_pretrained(model.folder).model_max_length
    except (OSError, ValueError) as error:
        raise _no("tokenizer", model.folder, error) from error
    if longest > MAX_TOKENS:
        raise UserError(
            f"{model.folder}/tokenizer_config.json: no model_max_length; add it (512 for RoBERTa)"
        )


def _no(part: str, folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder}: no {part} in it ({' '.join(str(error).split())[:100]}); name a folder with a "
        "model in transformers format"
    )


def unique_sentence_ratio(texts: Sequence[str]) -> float:
    """USR: distinct texts, as sequences of words between spaces, over texts.

    >>> unique_sentence_ratio(["A b.", "A  b.", "a b."])
    0.6666666666666666
    """
    return len({tuple(text.split()) for text in texts}) / len(texts)


def feature_matching_ratio(found: Sequence[Set[Hashable]], own: Sequence[Set[Hashable]]) -> float:
    """FMR: share of texts that name a feature of their own.

    Args:
        found: [n] features named in each text.
        own: [n] features of each text's item.
    """
    return sum(not one.isdisjoint(two) for one, two in zip(found, own, strict=True)) / len(found)


def feature_coverage_ratio(found: Sequence[Set[Hashable]], features: Set[Hashable]) -> float | None:
    """FCR: share of all features that some text names; None where there are no features."""
    return len(set().union(*found) & features) / len(features) if features else None


def feature_diversity(found: Sequence[Set[Hashable]]) -> float | None:
    """DIV: mean number of features that two texts share; None for a single text.

    >>> feature_diversity([{"plot"}, {"plot", "cast"}, {"cast"}])
    0.6666666666666666
    """
    if len(found) < 2:
        return None
    named = Counter(feature for features in found for feature in features)
    return sum(math.comb(count, 2) for count in named.values()) / math.comb(len(found), 2)


def distinct(texts: Sequence[str], n: int) -> float | None:
    """distinct-n: distinct n-grams over n-grams of all texts; None where there are none."""
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def item_features(item: Item) -> set[Phrase]:
    """Title and categories of an item, as words."""
    names = (short_title(item), *item.categories)
    return {phrase for phrase in (tuple(words(name)) for name in names) if phrase}


def named_features(text: str, item: Item, index: ClaimIndex) -> set[Phrase]:
    """Features that a text names, found as claims are.

    Args:
        text: about `item`.
        item: of which a title of one word is also found at the head of a sentence.
        index: finds them.
    """
    tokens = words(text)
    title = words(short_title(item))
    spans = index.spans(tokens, written_as_names(text, title if len(title) == 1 else ()))
    return {tuple(tokens[start:end]) for start, end in spans}


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


class Features:
    """Features of the explained items, and those that texts about them name."""

    def __init__(self, requests: Sequence[Request]):
        """
        Args:
            requests: [n], what is explained.
        """
        self._items = [request.about for request in requests]
        self._own = [item_features(item) for item in self._items]
        # An index wants a catalogue, whose first entry is padding.
        self._index = ClaimIndex([Item("", (), ""), *self._items])

    def metrics(self, texts: Sequence[str]) -> dict[str, float | None]:
        """FMR, FCR and DIV of n texts."""
        found = self._named(texts)
        return {
            "fmr": feature_matching_ratio(found, self._own),
            "fcr": feature_coverage_ratio(found, self._index.phrases),
            "div": feature_diversity(found),
        }

    def matching(
        self,
        texts: Sequence[str],
        places: np.ndarray | None = None,
        others: np.ndarray | None = None,
    ) -> float | None:
        """FMR of n texts, or of those at `places` [k] against the features of the items at `others`
        [k]; None where there are none."""
        found, own = self._named(texts), self._own
        if places is not None:
            found, own = [found[place] for place in places], [own[place] for place in others]
        return feature_matching_ratio(found, own) if found else None

    def _named(self, texts: Sequence[str]) -> list[set[Phrase]]:
        return [
            named_features(text, item, self._index)
            for text, item in zip(texts, self._items, strict=True)
        ]


def _reason(reviews: Path | None) -> str:
    return NO_REFERENCES if reviews and count_reviews(reviews) else NO_REVIEWS


def _means(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in scores.items()}
