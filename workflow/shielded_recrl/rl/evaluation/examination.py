"""The click simulator `examination`: another form than `simulator`, so that no claim rests on one.

    P(click) = patience(user)^(position - 1) * Phi(INTERCEPT + a * relevance + b * quality)

The position-based model: what is clicked was examined and attracts (Richardson, Dominowska and
Ragno 2007; Craswell et al. 2008; Chuklin, Markov and de Rijke 2015), with the geometric decay of
Moffat and Zobel 2008 and a patience of each user's own. Relevance is content alone: the categories
of the item against those of the user's validation history, by no other user's behaviour. Quality
counts words, not claims: how much of what is known of the item, and of one title of the history, a
text says, each word by its rarity in the catalogue (Sparck Jones 1972). Which texts are good is
decided by other evidence than in `simulator`; the two share how `rl.text` splits a text into words
and tells which are written as names, and what `copying` takes for a copy of the prompt. No reward and
no training command may import it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from shielded_recrl.explainer.prompts import Item, PromptBuilder, Request, short_title
from shielded_recrl.ranker.data import Splits
from shielded_recrl.rl.evaluation.base import Simulator, Triple, click_draws, standardised
from shielded_recrl.rl.evaluation.copying import own_share, prompt_words
from shielded_recrl.rl.settings import EvaluationSettings
from shielded_recrl.rl.text import words, written_as_names

# Phi(INTERCEPT) = 0.31: the examined item of mean relevance with no explanation.
INTERCEPT = -0.5
# Patience is Beta(SPREAD * mean, SPREAD * (1 - mean)).
SPREAD = 20.0
# Between seed and user in every key, so that no draw is the other simulator's.
STREAM = (2,)
# Words at which the length factor of quality reaches tanh(1) = 0.76.
LENGTH_SCALE = 12.0
# Share of its words, as an effective number, that a text without repetition has at least.
VARIED = 0.6
# Share of words of its own, not copied from the prompt, that prose has at least.
OWN_WORDS = 0.4
# Share of quality a text keeps that says nothing of item or history.
UNINFORMED = 0.1
# How much more it counts to speak of the item than of the history.
ABOUT = 2.0
# Of a description, as longer ones name every common word.
DESCRIPTION_CHARACTERS = 400


class Vocabulary:
    """How rare each word of a catalogue is, and which words stand in its names."""

    def __init__(self, items: Sequence[Item]):
        """
        Args:
            items: the catalogue; entry 0 is padding.
        """
        documents = [names_of(item) | described(item) for item in items[1:]]
        self.idf = inverse_document_frequencies(documents)
        self.names = frozenset().union(*map(names_of, items[1:]))

    def weight(self, tokens: Iterable[str]) -> float:
        """Sum of the rarities of distinct words; a word of no item weighs nothing."""
        return sum(self.idf.get(token, 0.0) for token in sorted(set(tokens)))

    def share(self, part: Collection[str], whole: Collection[str]) -> float:
        """Weight of `part` over that of `whole`, at most 1; 0 where nothing has weight."""
        total = self.weight(whole)
        return min(1.0, self.weight(part) / total) if total > 0 else 0.0


class Reading(NamedTuple):
    """What the simulator makes of one text, each in [0, 1].

    Attributes:
        length: saturating.
        varied: 1 without repetition.
        fluent: 1 for prose, 0 for what only copies or lists.
        precision: of the names in it, by rarity.
        evidence: how much it says of item and history, by rarity.
    """

    length: float
    varied: float
    fluent: float
    precision: float
    evidence: float

    @property
    def quality(self) -> float:
        """length * varied * fluent * precision * (UNINFORMED + (1 - UNINFORMED) * evidence)."""
        form = self.length * self.varied * self.fluent * self.precision
        return form * (UNINFORMED + (1 - UNINFORMED) * self.evidence)


NOTHING = Reading(0.0, 0.0, 0.0, 1.0, 0.0)


class ExaminationSimulator(Simulator):
    """Users who examine from the top, each with a patience, and are attracted by relevant items."""

    name = "examination"

    def __init__(
        self,
        prompts: PromptBuilder,
        splits: Splits,
        triples: Sequence[Triple],
        settings: EvaluationSettings,
        seed: int,
    ):
        """
        Args:
            prompts: catalogue and templates: what a text may know, and what it may only copy.
            splits: interactions that relevance is taken from.
            triples: (user, item, position) of what is shown.
            settings: weights, patience and sessions.
            seed: of patience and draws.
        """
        self.prompts = prompts
        self.vocabulary = Vocabulary(prompts.items)
        self.settings = settings
        self.quality_weight = settings.quality_weight
        pairs = [(user, item) for user, item, _ in triples]
        self.relevance = content_relevance(prompts.items, splits, pairs)
        self.examined = np.array(
            [
                examination(position, user_patience(user, settings.patience, seed))
                for user, _, position in triples
            ]
        )
        self.draws = click_draws(triples, settings.sessions, seed, STREAM)

    def judge(self, text: str, request: Request) -> Reading:
        """Length, variety, fluency, precision and evidence of a text."""
        return read(text, request, self.vocabulary, prompt_words(request, self.prompts))

    def probability(self, qualities: np.ndarray, quality_weight: float) -> np.ndarray:
        """examination * Phi(INTERCEPT + a * relevance + b * quality), [n]."""
        attraction = self.settings.relevance_weight * self.relevance + quality_weight * qualities
        return self.examined * ndtr(INTERCEPT + attraction)


def read(text: str, request: Request, vocabulary: Vocabulary, prompt: Sequence[str]) -> Reading:
    """Take one text apart.

    Args:
        text: the explanation.
        request: what it explains, and the history it may speak of.
        vocabulary: of the catalogue.
        prompt: words of the prompt, in order.
    """
    tokens = words(text)
    if not tokens:
        return NOTHING
    as_names = written_as_names(text, names_of(request.about))
    called = {
        token
        for token, is_name in zip(tokens, as_names, strict=True)
        if is_name and len(token) > 1 and token in vocabulary.names
    }
    said = set(tokens)
    return Reading(
        length=math.tanh(len(tokens) / LENGTH_SCALE),
        varied=min(1.0, effective_words(tokens) / (VARIED * len(tokens))),
        fluent=min(1.0, own_share(tokens, request, prompt) / OWN_WORDS),
        precision=name_precision(called, said, request, vocabulary),
        evidence=evidence(said, request, vocabulary),
    )


def evidence(said: Collection[str], request: Request, vocabulary: Vocabulary) -> float:
    """Weighted mean of what a text says of the item and of one title of the history, in [0, 1].

    Of the item: the weight of its words that are said, title, categories and description, over
    that of title and categories. Of the history: the best-told title's share, the words of the
    item's own title aside, so that to name one book of a series is not to name two.
    """
    about = request.about
    known = names_of(about) | described(about)
    of_item = vocabulary.share(known.intersection(said), names_of(about))
    titles = [title_words(item) - title_words(about) for item in request.history]
    if not any(vocabulary.weight(title) for title in titles):
        return of_item
    told = max(vocabulary.share(title.intersection(said), title) for title in titles)
    return (ABOUT * of_item + told) / (ABOUT + 1)


def name_precision(
    called: Collection[str], said: Collection[str], request: Request, vocabulary: Vocabulary
) -> float:
    """Share, by rarity, of the words written as names that item or history supports; 1 for none.

    A word of a title of the history is supported, and one of its categories where the whole title
    is said.

    Args:
        called: words of the catalogue's names that the text writes as names.
        said: all words of the text.
        request: what it explains.
        vocabulary: of the catalogue.
    """
    supported = names_of(request.about) | described(request.about)
    for item in request.history:
        title = title_words(item)
        supported |= names_of(item) if title and title <= set(said) else title
    if vocabulary.weight(called) == 0:
        return 1.0
    return vocabulary.share(supported.intersection(called), called)


def effective_words(tokens: Sequence[str]) -> float:
    """exp(entropy) of the words: how many equally frequent ones are as varied (Jost 2006).

    >>> round(effective_words("to be or not to be".split()), 3)
    3.78
    """
    shares = np.array(sorted(Counter(tokens).values())) / len(tokens)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def content_relevance(
    items: Sequence[Item], splits: Splits, pairs: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Relevance [n] of (user, item) pairs by categories alone, standardised over the pairs.

    The cosine of the item's categories with those of the user's validation items, all earlier ones
    where there are none, summed; each category weighs by its rarity. Test interactions take no
    part.

    Args:
        items: the catalogue; entry 0 is padding.
        splits: the dataset.
        pairs: (user, item), each user with a history.
    """
    weights = inverse_document_frequencies([set(item.categories) for item in items[1:]])

    def profile(rows: Iterable[int]) -> dict[str, float]:
        counts = Counter(name for row in rows for name in set(items[row].categories))
        return {name: count * weights[name] for name, count in sorted(counts.items())}

    values = []
    for user, item in pairs:
        liked = splits.valid[user] if len(splits.valid[user]) else splits.train[user]
        values.append(cosine(profile([item]), profile(liked)))
    return standardised(np.array(values))


def inverse_document_frequencies(documents: Sequence[Collection[str]]) -> dict[str, float]:
    """log((1 + N) / (1 + documents with the term)) of each term: 0 for one that all have.

    Args:
        documents: the distinct terms of each of the N documents.
    """
    counts = Counter(term for document in documents for term in document)
    return {term: math.log((1 + len(documents)) / (1 + count)) for term, count in counts.items()}


def cosine(left: Mapping[str, float], right: Mapping[str, float]) -> float:
    """Cosine of two sparse vectors; 0 where one has no length."""
    norms = [math.hypot(*vector.values()) for vector in (left, right)]
    if not all(norms):
        return 0.0
    return sum(value * right.get(name, 0.0) for name, value in left.items()) / math.prod(norms)


def user_patience(user: int, mean: float, seed: int) -> float:
    """patience(user) ~ Beta(SPREAD * mean, SPREAD * (1 - mean)), by seed and user alone."""
    if mean == 1:
        return 1.0
    rng = np.random.default_rng([seed, *STREAM, user])
    return float(rng.beta(SPREAD * mean, SPREAD * (1 - mean)))


def examination(position: int, patience: float) -> float:
    """P(a position is examined): the first always is, a further one by who goes on.

    >>> examination(3, 0.5)
    0.25
    """
    return patience ** (position - 1)


def title_words(item: Item) -> frozenset[str]:
    """Distinct words of a title."""
    return frozenset(words(short_title(item)))


def names_of(item: Item) -> frozenset[str]:
    """Distinct words of title and categories."""
    return title_words(item).union(*map(words, item.categories))


def described(item: Item) -> frozenset[str]:
    """Distinct words of the description's beginning."""
    return frozenset(words(item.text[:DESCRIPTION_CHARACTERS]))
