"""The composite reward of an explanation.

In: responses and the requests they answer. Out: components in [0, 1] and their weighted sum. Only
the response is scored, never the prompt; what the request names is evidence. `features`,
`similarity`, `support` and `click` count only as far as a text is coherent, so stuffing an
incoherent text with keywords earns nothing. `repetition` and `toxicity` are penalties: they are
logged as what they are and subtracted with their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.prompts import Item, Request, short_title
from shielded_recrl.rl.rewards.base import Composite
from shielded_recrl.rl.rewards.click import click_probability, user_bias
from shielded_recrl.rl.rewards.reading import (
    FUNCTION_WORDS,
    ClaimIndex,
    Reading,
    prompt_names,
    read,
)
from shielded_recrl.rl.rewards.similarity import Similarity
from shielded_recrl.rl.settings import RewardSettings
from shielded_recrl.rl.text import distinct_share, echo_share, words

# Function words a text of prose has at least, as a share.
PROSE_SHARE = 0.2
ECHO_WORDS = 5
# Words beside the names that a sentence needs for each name in it.
WORDS_A_NAME = 2
REPEATED_WORDS = 3
# Support of a text without claims: to say nothing is better than to be wrong, worse than right.
NO_CLAIM = 0.5


def explanation_reward(
    items: Sequence[Item],
    tokenizer,
    embeddings: Tensor,
    relevance: Callable[[Request], float],
    settings: RewardSettings,
) -> Composite:
    """The reward of the explainer study; the context of a response is its `Request`.

    Args:
        items: the catalogue, in which claims are looked up.
        tokenizer: of the base LM.
        embeddings: frozen input embeddings of the base LM [v, d].
        relevance: standardised ranker score of a request's user and item.
        settings: weights.

    Raises:
        UserError: `toxicity` has a weight and its package is missing.
    """
    index = ClaimIndex(items)
    rewards = [Explanation(index, Similarity(items, tokenizer, embeddings), relevance, settings)]
    weights = {
        name: getattr(settings, name)
        for name in ("length", "coherence", "features", "similarity", "support", "click")
    }
    weights["repetition"] = -settings.repetition
    if settings.toxicity:
        rewards.append(Toxicity(index))
        weights["toxicity"] = -settings.toxicity
    return Composite(rewards, weights)


class Explanation:
    """Length, coherence, features, similarity, support, repetition, click. A `Reward`."""

    def __init__(
        self,
        index: ClaimIndex,
        similarity: Similarity,
        relevance: Callable[[Request], float],
        settings: RewardSettings,
    ):
        """
        Args:
            index: claims of the catalogue.
            similarity: relevance by embeddings.
            relevance: standardised ranker score of a request's user and item.
            settings: `target_words` is read.
        """
        self.index = index
        self.similarity = similarity
        self.relevance = relevance
        self.target = settings.target_words

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[Request]
    ) -> dict[str, Tensor]:
        """Seven components, each float32 [n]."""
        names = ("length", "coherence", "features", "similarity", "support", "repetition", "click")
        near = self.similarity(responses, context).tolist()
        rows = []
        for text, request, cosine in zip(responses, context, near, strict=True):
            reading = read(text, request, self.index)
            fluent = coherence(reading, request)
            named = features(reading, request)
            click = click_probability(
                coherence=fluent,
                words=len(reading.tokens),
                patience=2 * self.target,
                features=named,
                similarity=cosine,
                relevance=self.relevance(request),
                bias=user_bias(request.user),
            )
            rows.append(
                (
                    length(len(reading.tokens), self.target),
                    fluent,
                    fluent * named,
                    fluent * cosine,
                    fluent * support(reading),
                    repetition(reading),
                    click,
                )
            )
        columns = torch.tensor(rows, dtype=torch.float32).reshape(-1, len(names)).T.contiguous()
        return dict(zip(names, columns, strict=True))


class Toxicity:
    """Probability that a text offends, by the scorer of the audit. A `Reward`.

    Supported names are taken out first: that an item is called "Kill Bill" is no offence of the
    text.
    """

    def __init__(self, index: ClaimIndex):
        """
        Args:
            index: claims of the catalogue.

        Raises:
            UserError: the scorer's package is missing.
        """
        # Loads scikit-learn, which only a run with this component needs. The scorer is imported by
        # its first text, which is too late to say that it is missing.
        try:
            import profanity_check  # noqa: F401

            from shielded_recrl.audit.toxicity import toxicity_scores
        except ModuleNotFoundError as error:
            raise UserError(
                f"rl.reward.toxicity needs alt-profanity-check ({error}); "
                "pip install alt-profanity-check, or set the weight to 0"
            ) from error
        self.index = index
        self.score = toxicity_scores

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[Request]
    ) -> dict[str, Tensor]:
        """`toxicity`, float32 [n] in [0, 1]."""
        texts = [
            own_words(read(text, request, self.index))
            for text, request in zip(responses, context, strict=True)
        ]
        return {"toxicity": torch.tensor(self.score(texts), dtype=torch.float32)}


def length(count: int, target: int) -> float:
    """Rises to 1 at `target` words, stays there to twice as many, falls to 0 at four times."""
    return min(count / target, 1.0, max(0.0, 2.0 - count / (2 * target)))


def coherence(reading: Reading, request: Request) -> float:
    """Product of: ends like a sentence (else 1/2), distinct bigrams, function words as in prose,
    words enough between the names, no echo of the prompt's row of names. 0 for an empty text."""
    tokens = reading.tokens
    if not tokens:
        return 0.0
    ended = 1.0 if reading.ended else 0.5
    prose = min(1.0, sum(token in FUNCTION_WORDS for token in tokens) / len(tokens) / PROSE_SHARE)
    echo = echo_share(tokens, prompt_names(request), ECHO_WORDS)
    return ended * distinct_share(tokens, 2) * prose * connected(reading) * (1.0 - echo)


def connected(reading: Reading) -> float:
    """Words outside of names over `WORDS_A_NAME` a name, at most 1: a list of names has too few."""
    if not reading.spans:
        return 1.0
    named = sum(end - start for start, end in reading.spans)
    return min(1.0, (len(reading.tokens) - named) / (WORDS_A_NAME * len(reading.spans)))


def features(reading: Reading, request: Request) -> float:
    """Relevance by named features: mean of three, those that the metadata allows, times precision.

    - title: 1 if the item's title is claimed, else half of the share of its words that occur;
    - category: 1 if one of the item's is claimed;
    - link: 1 if a title of the history is claimed that shares a category with the item, 1/2 for
      another; where no title of the history shares one, 1 for any.
    """
    about = request.about
    title = tuple(words(short_title(about)))
    parts = []
    if title:
        occurring = sum(word in reading.tokens for word in title) / len(title)
        parts.append(1.0 if title in reading.claims else occurring / 2)
    if about.categories:
        parts.append(float(any(tuple(words(name)) in reading.claims for name in about.categories)))
    shared = {
        phrase: bool(set(past.categories) & set(about.categories))
        for past in request.history
        if (phrase := tuple(words(short_title(past)))) and phrase != title
    }
    if shared:
        best = max(
            (0.5 + 0.5 * shared[phrase] for phrase in reading.claims & shared.keys()), default=0
        )
        parts.append(best / (0.5 + 0.5 * max(shared.values())))
    return reading.precision * sum(parts) / len(parts) if parts else 0.0


def support(reading: Reading) -> float:
    """Supported share of the claims; `NO_CLAIM` for a text that claims nothing."""
    return reading.precision if reading.claims else NO_CLAIM


def repetition(reading: Reading) -> float:
    """Share of the trigrams that repeat an earlier one: seq-rep-n (Welleck et al. 2020), n = 3."""
    return 1.0 - distinct_share(reading.tokens, REPEATED_WORDS)


def own_words(reading: Reading) -> str:
    """The text without its supported names."""
    kept, end = [], 0
    for start, stop in reading.spans:
        if reading.tokens[start:stop] in reading.supported:
            kept.extend(reading.tokens[end:start])
            end = stop
    return " ".join([*kept, *reading.tokens[end:]])
