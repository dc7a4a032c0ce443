"""Plain text measures that rewards and simulators are built from."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """Lower-case words; punctuation is dropped.

    >>> words("It's Dragon Song, vol. 2!")
    ["it's", 'dragon', 'song', 'vol', '2']
    """
    return WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams, in order, repetitions kept."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def names(tokens: Sequence[str], phrase: str) -> bool:
    """Whether the words of a phrase stand in a row among the tokens; an empty phrase does not."""
    wanted = tuple(words(phrase))
    return bool(wanted) and wanted in ngrams(tokens, len(wanted))


def distinct_share(tokens: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016); 1 where there are none."""
    grams = ngrams(tokens, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def echo_share(tokens: Sequence[str], phrases: Sequence[str], n: int) -> float:
    """Share of the tokens' n-grams that copy a row of phrases; 0 where there are none.

    Naming one phrase, however long, is no echo: only n-grams that cross from one to the next count.
    """
    grams = ngrams(tokens, n)
    split = [words(phrase) for phrase in phrases]
    row = set(ngrams([word for phrase in split for word in phrase], n))
    row -= {gram for phrase in split for gram in ngrams(phrase, n)}
    return sum(gram in row for gram in grams) / len(grams) if grams else 0.0
