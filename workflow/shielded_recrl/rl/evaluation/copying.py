"""What of a text is copied from its prompt, for both simulators.

In: the words of a text, its request, the words of the prompt. Out: shares, 0 to 1. Words are those
of `rl.text`, names are titles and categories of item and history. To name something is an
explanation's task, hence never a copy, however long the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from shielded_recrl.explainer.prompts import PromptBuilder, Request, request_text, short_title
from shielded_recrl.rl.text import ngrams, words


def prompt_words(request: Request, prompts: PromptBuilder) -> list[str]:
    """Words of the prompt of a request, in order."""
    titles = "; ".join(short_title(item) for item in request.history)
    history = prompts.prefix_template.replace("{history}", titles)
    return words(f"{history}\n{request_text(prompts.request_template, request.about)}")


def row_of_names(request: Request) -> list[str]:
    """What is known of a prompt without its templates: its titles and categories, in order."""
    titles = [short_title(item) for item in (*request.history, request.about)]
    return words(" ".join([*titles, *request.about.categories]))


def own_share(tokens: Sequence[str], request: Request, prompt: Sequence[str]) -> float:
    """Share of the words that are neither copied from the prompt nor names of one word.

    A word is copied where it stands in two words running that stand so in the prompt or in a name:
    the extractive coverage of Grusky, Naaman and Artzi 2018, for fragments of two words or more.

    Args:
        tokens: words of the text, at least one.
        request: what it explains.
        prompt: words of the prompt, in order.
    """
    names = _names(request)
    single = {name[0] for name in names if len(name) == 1}
    copied = set(ngrams(prompt, 2)).union(*(ngrams(name, 2) for name in names))
    taken = [token in single for token in tokens]
    for start, pair in enumerate(ngrams(tokens, 2)):
        if pair in copied:
            taken[start] = taken[start + 1] = True
    return 1 - sum(taken) / len(tokens)


class Echo(NamedTuple):
    """What of a text follows its prompt.

    Attributes:
        share: of its joints, from 0 to 1.
        words: [n] whether each word stands in such a stretch.
    """

    share: float
    words: tuple[bool, ...]


def echo(tokens: Sequence[str], request: Request, prompt: Sequence[str]) -> Echo:
    """How much of a text follows the prompt: all of it for the prompt or a part of it.

    A joint is two words running that do not stand so within a name, so a long name weighs as much
    as a short one. It follows the prompt where the prompt has it, and the joint before or after it
    in the text, too: one alone ("liked" and a title) is a way to begin a sentence. A text with no
    word of its own, see `own_share`, follows the prompt altogether.

    Args:
        tokens: words of the text, at least one.
        request: what it explains.
        prompt: words of the prompt, in order.
    """
    if not own_share(tokens, request, prompt):
        return Echo(1.0, (True,) * len(tokens))
    within = {pair for name in _names(request) for pair in ngrams(name, 2)}
    known = set(ngrams(prompt, 2)) - within
    pairs = ngrams(tokens, 2)
    joints = [place for place, pair in enumerate(pairs) if pair not in within]
    following, taken = set(), [False] * len(tokens)
    for left, right in pairwise(joints):
        if pairs[left] in known and pairs[right] in known:
            following |= {left, right}
            taken[left : right + 2] = [True] * (right + 2 - left)
    return Echo(len(following) / len(joints) if joints else 0.0, tuple(taken))


def _names(request: Request) -> list[list[str]]:
    """Words of all titles and categories; categories of the history stand in no prompt."""
    items = (request.about, *request.history)
    return [words(name) for item in items for name in (short_title(item), *item.categories)]
