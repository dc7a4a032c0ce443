"""The click simulator `claims`, which no reward and no training command may import.

    P(click) = sigmoid(a * relevance + b * quality + bias(user)),   bias(user) ~ N(0, scale)

Relevance comes from validation interactions, which no training prompt names; quality from claims
checked against the whole catalogue. Quality and reward value the same things in an explanation,
length, form and supported claims; both count distinct bigrams with `rl.text`, the rest they
measure differently. `examination` is the second simulator, of another form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_array

from shielded_recrl.explainer.prompts import Item, PromptBuilder, Request, short_title
from shielded_recrl.ranker.data import Splits
from shielded_recrl.rl.evaluation.base import Simulator, Triple, click_draws, standardised
from shielded_recrl.rl.evaluation.copying import echo, prompt_words, row_of_names
from shielded_recrl.rl.settings import SimulatorSettings
from shielded_recrl.rl.text import distinct_share, words, written_as_names

# Words at which the length factor of quality reaches 1 - 1/e.
LENGTH_SCALE = 6.0
CLAIMS = 3
# Share of quality a text keeps that makes no claim at all.
UNGROUNDED = 0.25

Phrase = tuple[str, ...]


class ClaimIndex:
    """Finds the titles and categories of a catalogue in a text."""

    def __init__(self, items: Sequence[Item]):
        """
        Args:
            items: the catalogue; entry 0 is padding.
        """
        titles = {tuple(words(short_title(item))) for item in items[1:]}
        categories = {tuple(words(name)) for item in items[1:] for name in item.categories}
        self.phrases = {phrase for phrase in titles | categories if phrase}
        self.longest = max(map(len, self.phrases), default=0)
        self.words = {phrase for phrase in titles - categories if len(phrase) == 1}

    def spans(
        self, tokens: Sequence[str], as_names: Sequence[bool] | None = None
    ) -> list[tuple[int, int]]:
        """[start, end) of each phrase named, in order; of two that begin together, the longer.

        Args:
            tokens: words of a text.
            as_names: whether each is written as a name, see `written_as_names`. A title of one
                word is named only so: there are films called It, More and Next.
        """
        found, position = [], 0
        while position < len(tokens):
            for size in range(min(self.longest, len(tokens) - position), 0, -1):
                phrase = tuple(tokens[position : position + size])
                if phrase in self.words and as_names is not None and not as_names[position]:
                    continue
                if phrase in self.phrases:
                    found.append((position, position + size))
                    position += size - 1
                    break
            position += 1
        return found


def supported_claims(named: set[Phrase], request: Request) -> set[Phrase]:
    """Those of the claims that hold: titles of item and history, categories of the item, and those
    of a title of the history that is named as well."""
    titles = {_title(item) for item in _items(request)}
    told = [request.about, *(item for item in request.history if _title(item) in named)]
    return named & (titles | {tuple(words(name)) for item in told for name in item.categories})


class Judgement(NamedTuple):
    """What the simulator makes of one text.

    Attributes:
        quality: in [0, 1).
        claims: distinct claims of the text.
        supported: how many of them item and history support.
    """

    quality: float
    claims: int
    supported: int


def judge(
    text: str, request: Request, index: ClaimIndex, prompt: Sequence[str] | None = None
) -> Judgement:
    """Claims of a text, and its quality.

    Quality saturates in length and falls with repetition, echo and unsupported claims:

        length * distinct * (1 - echoed) * (1 - listed) * precision
            * (UNGROUNDED + (1 - UNGROUNDED) * grounded),

    where grounded is the number of supported claims over CLAIMS, at most 1, and at most 1 / CLAIMS
    for a text that does not name its item; echoed is the share of the text that follows the prompt,
    see `copying.echo`, 1 for the prompt, a part of it, and mere names, and a claim that stands in
    such a stretch alone grounds nothing; listed is the share of neighbouring claims with no word
    between them, once three stand in a row: two names may meet at a comma, but a list of names is
    no explanation. An empty text has quality 0.

    Args:
        text: the explanation.
        request: what it explains.
        index: of the catalogue.
        prompt: words of the prompt, in order; without it, of its titles and categories alone, and
            the templates' own words are not known to be copied.
    """
    tokens = words(text)
    if not tokens:
        return Judgement(0.0, 0, 0)
    own = {title[0] for title in map(_title, _items(request)) if len(title) == 1}
    spans = index.spans(tokens, written_as_names(text, own))
    claims = {tuple(tokens[start:end]) for start, end in spans}
    supported = supported_claims(claims, request)
    touching = [left[1] == right[0] for left, right in pairwise(spans)]
    three_in_a_row = any(map(all, pairwise(touching)))
    listed = sum(touching) / len(touching) if three_in_a_row else 0.0
    precision = len(supported) / len(claims) if claims else 1.0
    copied = echo(tokens, request, row_of_names(request) if prompt is None else prompt)
    told = {tuple(tokens[start:end]) for start, end in spans if not any(copied.words[start:end])}
    about = _title(request.about)
    most = CLAIMS if not about or about in told else 1
    grounded = min(len(supported & told), most) / CLAIMS
    saturation = 1 - math.exp(-len(tokens) / LENGTH_SCALE)
    honest = distinct_share(tokens, 2) * (1 - copied.share) * (1 - listed) * precision
    value = saturation * honest * (UNGROUNDED + (1 - UNGROUNDED) * grounded)
    return Judgement(value, len(claims), len(supported))


class ClaimsSimulator(Simulator):
    """Users who weigh relevance, their mood, and the claims of a text in one logit."""

    name = "claims"

    def __init__(
        self,
        prompts: PromptBuilder,
        splits: Splits,
        triples: Sequence[Triple],
        settings: SimulatorSettings,
        seed: int,
    ):
        """
        Args:
            prompts: catalogue and templates: what a text may claim, and what it may only copy.
            splits: interactions that relevance is taken from.
            triples: (user, item, position) of what is shown.
            settings: weights and sessions.
            seed: of biases and draws.
        """
        self.prompts = prompts
        self.index = ClaimIndex(prompts.items)
        self.settings = settings
        self.quality_weight = settings.quality_weight
        self.relevance = relevance(splits, [(user, item) for user, item, _ in triples])
        self.bias = np.array([user_bias(user, settings.bias_scale, seed) for user, *_ in triples])
        self.draws = click_draws(triples, settings.sessions, seed)

    def judge(self, text: str, request: Request) -> Judgement:
        """Quality, claims and supported claims of a text."""
        return judge(text, request, self.index, prompt_words(request, self.prompts))

    def probability(self, qualities: np.ndarray, quality_weight: float) -> np.ndarray:
        """sigmoid(a * relevance + b * quality + bias(user)), [n]."""
        weights = self.settings.model_copy(update={"quality_weight": quality_weight})
        return click_probability(self.relevance, qualities, self.bias, weights)


def relevance(splits: Splits, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Relevance [n] of (user, item) pairs, standardised over the pairs.

    The mean cosine, over the train and validation interactions of all users, of the item with the
    user's validation items (all earlier ones where there are none); the user's own row is left
    out, so that it is other users who speak. Test interactions take no part.

    Args:
        splits: the dataset.
        pairs: (user, item), each user with a history.
    """
    taken = [np.concatenate(parts) for parts in zip(splits.train, splits.valid, strict=True)]
    users = np.repeat(np.arange(splits.n_users + 1), [len(items) for items in taken])
    items = np.concatenate(taken)
    shape = (splits.n_users + 1, splits.n_items + 1)
    matrix = csc_array((np.ones(len(items)), (users, items)), shape=shape)
    matrix.data[:] = 1.0
    counts = matrix.sum(axis=0)
    values = []
    for user, item in pairs:
        own = np.isin(np.arange(shape[1]), taken[user]).astype(float)
        liked = splits.valid[user] if len(splits.valid[user]) else splits.train[user]
        together = (matrix[:, [item]].T @ matrix[:, liked]).toarray()[0]
        joint = together - own[item] * own[liked]
        norm = np.sqrt((counts[item] - own[item]) * (counts[liked] - own[liked]))
        values.append(np.divide(joint, norm, out=np.zeros(len(liked)), where=norm > 0).mean())
    return standardised(np.array(values))


def click_probability(
    relevances: np.ndarray, qualities: np.ndarray, biases: np.ndarray, settings: SimulatorSettings
) -> np.ndarray:
    """P(click) of each pair, [n]."""
    logit = settings.relevance_weight * relevances + settings.quality_weight * qualities + biases
    return 1 / (1 + np.exp(-logit))


def user_bias(user: int, scale: float, seed: int) -> float:
    """bias(user) ~ N(0, scale), a function of seed and user alone."""
    return float(np.random.default_rng([seed, user]).normal(0, scale)) if scale else 0.0


def _items(request: Request) -> tuple[Item, ...]:
    return (request.about, *request.history)


def _title(item: Item) -> Phrase:
    return tuple(words(short_title(item)))
