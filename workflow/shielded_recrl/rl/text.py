"""Plain text measures that rewards and simulators are built from."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# What may stand between the end of a sentence and the first word of the next, and what ends one.
OPENING = " \t\n\"'“‘(["
ENDING = ("", ".", "!", "?", ":")


def words(text: str) -> list[str]:
    """Lower-case words; punctuation is dropped.

    >>> words("It's Dragon Song, vol. 2!")
    ["it's", 'dragon', 'song', 'vol', '2']
    """
    # Lowering first could break a word: "İ" becomes two characters.
    return [word.lower() for word in WORD.findall(text)]


def written_as_names(text: str, known: Collection[str] = ()) -> list[bool]:
    """Whether each word of a text begins with the capital of a name.

    At the head of a sentence a capital may be the sentence's; only words `known` to be names get the
    benefit of the doubt.

    >>> written_as_names("It is fun. Next: more like It")
    [False, False, False, False, False, False, True]
    >>> written_as_names("Heat is fun. Next: more", known={"heat"})
    [True, False, False, False, False]
    """
    return [
        match[0][0].isupper()
        and (match[0].lower() in known or text[: match.start()].rstrip(OPENING)[-1:] not in ENDING)
        for match in WORD.finditer(text)
    ]


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
