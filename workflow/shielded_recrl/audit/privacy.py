"""Privacy of texts: users' ids and names that leaked into them, and text copied word for word.

In: texts, the users' ids and names, the catalogue's texts and the users' reviews. Out: which texts
leak or copy, and an exact upper bound of a rate (Clopper and Pearson 1934).

A text is compared word by word: a word is a run of letters and digits, in lower case; "user4821" and
"u4821" count as two words, too. An id is *distinctive* if it has at least four characters and occurs
nowhere in the catalogue; such an id leaks wherever it is written. Any other id could be a year, a
volume or a count, and leaks only right after a word such as "user" or "id". Both may be one word,
"user4821", unless that word is the catalogue's ("Independence Day (a.k.a. ID4)"). A name is distinctive if
it has two words or more and occurs nowhere in the catalogue; a name that several users bear tells
nobody apart and is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from itertools import chain
from typing import NamedTuple

import numpy as np

Phrase = tuple[str, ...]

DISTINCTIVE_LENGTH = 4
MARKERS = ("account", "customer", "id", "member", "reviewer", "uid", "user", "userid", "username")
# A marker and what is written to it without a space. "u" marks only so, and only numbers.
GLUED = re.compile(
    rf"^({'|'.join(sorted(MARKERS, key=len, reverse=True))}|u(?=.*\d))"
    rf"(.{{{DISTINCTIVE_LENGTH},}}|.*\d.*)"
)


class UserIds(NamedTuple):
    """Ids or names as phrases.

    Attributes:
        distinctive: those that leak anywhere.
        marked: those that leak after a marker.
        titled: words of the catalogue that are a marker and an id in one.
    """

    distinctive: frozenset[Phrase]
    marked: frozenset[Phrase]
    titled: frozenset[str] = frozenset()


def words(text: str) -> Phrase:
    """Words of a text, in lower case.

    >>> words("User A2-77: it's 4_ever!")
    ('user', 'a2', '77', 'it', 's', '4', 'ever')
    """
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def unglued(text: str, whole: Set[str] = frozenset()) -> str:
    """The words of a text, with a space between a marker and what is written to it.

    >>> unglued("User4821, u77 and the usual ID4", {"id4"})
    'user 4821 u 77 and the usual id4'

    Args:
        text: what was written.
        whole: words that stay as they are.
    """
    return " ".join(word if word in whole else GLUED.sub(r"\1 \2", word) for word in words(text))


def ngrams(text: Phrase, n: int) -> set[Phrase]:
    """All runs of n consecutive words."""
    return {text[start : start + n] for start in range(len(text) - n + 1)}


def occurring(phrases: Set[Phrase], texts: Iterable[str]) -> set[Phrase]:
    """Those of the phrases that occur in a text; reads the texts once, one at a time."""
    lengths = {len(phrase) for phrase in phrases}
    found: set[Phrase] = set()
    for text in texts:
        split = words(text)
        for n in lengths:
            found |= ngrams(split, n) & phrases
    return found


def user_ids(ids: Iterable[str], catalogue: Sequence[str]) -> UserIds:
    """Sort ids into those distinctive in view of the catalogue's texts and those that are not."""
    phrases = {phrase for value in ids if (phrase := words(value))}
    long = {p for p in phrases if sum(map(len, p)) >= DISTINCTIVE_LENGTH}
    return _sorted(phrases, long, catalogue)


def user_names(names: Iterable[str], catalogue: Sequence[str]) -> UserIds:
    """Sort the names that one user alone bears into distinctive ones and others.

    Args:
        names: one of each user.
        catalogue: titles and descriptions.
    """
    bearers = Counter(phrase for name in names if (phrase := words(name)))
    unique = {phrase for phrase, users in bearers.items() if users == 1}
    full = {phrase for phrase in unique if len(phrase) > 1}
    return _sorted(unique, full, catalogue)


def _sorted(phrases: Set[Phrase], distinctive: Set[Phrase], catalogue: Sequence[str]) -> UserIds:
    """Phrases, of which some are distinctive where the catalogue does not say them."""
    own = distinctive - occurring(distinctive, catalogue)
    titled = {word for text in catalogue for word in words(text) if GLUED.match(word)}
    return UserIds(frozenset(own), frozenset(phrases - own), frozenset(titled))


def leaks(texts: Sequence[str], ids: UserIds) -> np.ndarray:
    """Mark [N] the texts that contain a user's id, or a user's name, also glued to a marker."""
    marked = {(marker, *phrase) for phrase in ids.marked for marker in MARKERS}
    readings = [(text, unglued(text, ids.titled)) for text in texts]
    found = occurring(ids.distinctive | marked, chain.from_iterable(readings))
    return np.array([bool(occurring(found, pair)) for pair in readings], dtype=bool)


def phrases_of(texts: Iterable[str], n: int) -> set[Phrase]:
    """All runs of n consecutive words of the texts."""
    return set().union(*(ngrams(words(text), n) for text in texts))


def copies(
    texts: Sequence[str], sources: Iterable[str], titles: Sequence[str], n: int
) -> np.ndarray:
    """Mark [N] the texts with n consecutive words of a source that no title contains.

    To name a long title is an explanation's task, hence not a copy.

    Args:
        texts: what was written.
        sources: descriptions or reviews; read once, one at a time.
        titles: of the catalogue.
        n: words.
    """
    runs = [ngrams(words(text), n) for text in texts]
    candidates = set().union(*runs)
    copied = occurring(candidates, sources) - occurring(candidates, titles)
    return np.array([not copied.isdisjoint(own) for own in runs], dtype=bool)


def upper_bound(events: int, samples: int) -> float:
    """One-sided 95% Clopper-Pearson upper bound of a rate: 1 - 0.05^(1/n) where nothing was seen.

    Takes the samples for independent.
    """
    from scipy.stats import binomtest

    test = binomtest(events, samples, alternative="less")
    return float(test.proportion_ci(confidence_level=0.95, method="exact").high)
