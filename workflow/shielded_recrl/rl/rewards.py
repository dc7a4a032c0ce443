"""The composite reward of an explanation: length, relevance, coherence, each in [0, 1].

In: responses and the requests they answer. Out: one number a component and response. Only the
response is scored, never the prompt; what the prompt names is evidence. Relevance counts only as
far as the text is coherent, so stuffing an incoherent text with keywords earns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shielded_recrl.explainer.prompts import Item, Request, short_title
from shielded_recrl.rl.settings import RewardSettings
from shielded_recrl.rl.text import distinct_share, echo_share, names, words

# English function words: prose has at least a fifth of them, a list of keywords has none.
FUNCTION_WORDS = frozenset(
    "a about all also an and another are as at be because been but by can do for from had has have "
    "here if in into is it its just like liked more most much new next no not of on one or other "
    "our out so some such than that the their them then there these they this those to too up very "
    "was we were what when which who why will with would you your".split()
)
PROSE_SHARE = 0.2
ECHO_WORDS = 5


def composite(
    responses: Sequence[str],
    requests: Sequence[Request],
    categories: frozenset[str],
    settings: RewardSettings,
) -> dict[str, np.ndarray]:
    """Components and their weighted sum, `total`, each float64 [n].

    Args:
        responses: texts to be scored.
        requests: what each was asked.
        categories: all of the catalogue, see `vocabulary`; naming a wrong one is an unsupported claim.
        settings: weights.
    """
    rows = []
    for text, request in zip(responses, requests, strict=True):
        fluent = coherence(text, request)
        rows.append(
            (
                length(text, settings.target_words),
                relevance(text, request, categories) * fluent,
                fluent,
            )
        )
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    parts = dict(zip(("length", "relevance", "coherence"), columns, strict=True))
    parts["total"] = sum(getattr(settings, name) * values for name, values in list(parts.items()))
    return parts


def vocabulary(items: Sequence[Item]) -> frozenset[str]:
    """All categories of a catalogue."""
    return frozenset(name for item in items for name in item.categories)


def length(text: str, target: int) -> float:
    """Rises to 1 at `target` words, stays there to twice as many, falls to 0 at four times."""
    count = len(words(text))
    return float(min(count / target, 1.0, max(0.0, 2.0 - count / (2 * target))))


def relevance(text: str, request: Request, categories: frozenset[str]) -> float:
    """Mean of three claims made - the item's title, a category of it, a history title that shares
    one - times the share of the named categories that item or history support."""
    tokens = words(text)
    title = _title_share(tokens, request.about)
    category = any(names(tokens, name) for name in request.about.categories)
    link = max((_link(tokens, past, request.about) for past in request.history), default=0.0)
    return (title + category + link) / 3 * _precision(tokens, request, categories)


def coherence(text: str, request: Request) -> float:
    """Product of: ends like a sentence, repeats no bigram, reads like prose, echoes no prompt."""
    tokens = words(text)
    if not tokens:
        return 0.0
    ended = 1.0 if text.rstrip().endswith((".", "!", "?")) else 0.5
    prose = min(1.0, sum(token in FUNCTION_WORDS for token in tokens) / len(tokens) / PROSE_SHARE)
    echo = echo_share(tokens, prompt_names(request), ECHO_WORDS)
    return ended * distinct_share(tokens, 2) * prose * (1.0 - echo)


def prompt_names(request: Request) -> list[str]:
    """The names the prompt holds, in its order: what an echo would copy."""
    titles = [short_title(item) for item in (*request.history, request.about)]
    return [*titles, *request.about.categories]


def _title_share(tokens: Sequence[str], item: Item) -> float:
    title = words(short_title(item))
    return sum(word in tokens for word in title) / len(title) if title else 0.0


def _link(tokens: Sequence[str], past: Item, about: Item) -> float:
    if not names(tokens, short_title(past)):
        return 0.0
    return 1.0 if set(past.categories) & set(about.categories) else 0.5


def _precision(tokens: Sequence[str], request: Request, categories: frozenset[str]) -> float:
    supported = set(request.about.categories).union(*(past.categories for past in request.history))
    # A category word inside a named title is a name, not a claim.
    titles = words(" ".join(prompt_names(request)))
    claimed = [name for name in categories if names(tokens, name)]
    claimed = [name for name in claimed if name in supported or not names(titles, name)]
    return sum(name in supported for name in claimed) / len(claimed) if claimed else 1.0
