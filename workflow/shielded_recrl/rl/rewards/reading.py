"""An explanation taken apart once: its words, the claims it makes, and which are supported.

A claim is a title or a category of the catalogue that stands in the text. A claim is supported if
it names the item or an item of the history, or a category of one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from shielded_recrl.explainer.prompts import Item, Request, short_title
from shielded_recrl.rl.text import words, written_as_names

# English function words: prose has at least a fifth of them, a list of keywords has none.
FUNCTION_WORDS = frozenset(
    "a about all also an and another are as at be because been but by can do for from had has have "
    "here if in into is it its just like liked more most much new next no not of on one or other "
    "our out so some such than that the their them then there these they this those to too up very "
    "was we were what when which who why will with would you your".split()
)
SENTENCE_ENDS = (".", "!", "?")

Phrase = tuple[str, ...]
Span = tuple[int, int]


class ClaimIndex:
    """Titles and categories of a catalogue, found in a text by look-up.

    The cost of a text depends on its words, not on the size of the catalogue.
    """

    def __init__(self, items: Sequence[Item]):
        """
        Args:
            items: the catalogue. A name of function words alone, such as the title "It", is not
                searched for: it would be found in every text.
        """
        self.phrases = {
            phrase
            for item in items
            for phrase in names_of(item)
            if not FUNCTION_WORDS.issuperset(phrase)
        }
        categories = {tuple(words(name)) for item in items for name in item.categories}
        self.words = {phrase for phrase in self.phrases - categories if len(phrase) == 1}
        sizes: dict[str, set[int]] = {}
        for phrase in self.phrases:
            sizes.setdefault(phrase[0], set()).add(len(phrase))
        self._sizes = {first: sorted(found, reverse=True) for first, found in sizes.items()}

    def find(self, tokens: Sequence[str], as_names: Sequence[bool] | None = None) -> list[Span]:
        """Claims as spans [start, end), left to right; of two that begin together, the longer.

        Args:
            tokens: words of a text.
            as_names: whether each is written as a name; a title of one word, such as "May", is
                found only where it is. All are by default.
        """
        spans, start = [], 0
        while start < len(tokens):
            for size in self._sizes.get(tokens[start], ()):
                end = start + size
                phrase = tuple(tokens[start:end])
                if phrase in self.words and as_names is not None and not as_names[start]:
                    continue
                if end <= len(tokens) and phrase in self.phrases:
                    spans.append((start, end))
                    start = end
                    break
            else:
                start += 1
        return spans


@dataclass(frozen=True)
class Reading:
    """What the components look at.

    Attributes:
        tokens: lower-case words.
        ended: whether the text ends like a sentence.
        spans: where claims stand.
        claims: the distinct claims.
        supported: those of them that the item or the history supports.
    """

    tokens: tuple[str, ...]
    ended: bool
    spans: tuple[Span, ...]
    claims: frozenset[Phrase]
    supported: frozenset[Phrase]

    @property
    def precision(self) -> float:
        """Supported share of the claims; 1 where there are none."""
        return len(self.supported) / len(self.claims) if self.claims else 1.0


def read(text: str, request: Request, index: ClaimIndex) -> Reading:
    """Take one response apart."""
    tokens, known = tuple(words(text)), evidence(request)
    # "Heat is fun" names the film Heat where the text is about it; "Fans" names no film Fans.
    as_names = written_as_names(text, {phrase[0] for phrase in known if len(phrase) == 1})
    spans = tuple(index.find(tokens, as_names))
    claims = frozenset(tokens[start:end] for start, end in spans)
    return Reading(tokens, text.rstrip().endswith(SENTENCE_ENDS), spans, claims, claims & known)


def evidence(request: Request) -> frozenset[Phrase]:
    """What an honest text may name: titles and categories of the item and of the history."""
    return frozenset().union(*map(names_of, (request.about, *request.history)))


@lru_cache(65_536)
def names_of(item: Item) -> frozenset[Phrase]:
    """Title and categories of an item."""
    return frozenset(tuple(words(name)) for name in (short_title(item), *item.categories))


def prompt_names(request: Request) -> list[str]:
    """The names the prompt holds, in its order: what an echo would copy."""
    titles = [short_title(item) for item in (*request.history, request.about)]
    return [*titles, *request.about.categories]
