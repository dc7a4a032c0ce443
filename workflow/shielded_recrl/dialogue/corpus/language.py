"""Whether a dialogue is English, told without a model: by its letters and its commonest words.

In: the texts of a dialogue. Out: two shares, or none where there is too little to judge by. A list
of languages would need a model of each; here only English has to be told from all others, and in a
dialogue of some dozens of words about every second one is among the commonest of its language. Words
that are as common elsewhere ("me", "no", "son", "die") are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from shielded_recrl.dialogue.corpus.dialogues import SLOT

# Fewer words than this may well all be names.
FEWEST = 8
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
COMMON = frozenset(
    """
    the of and to is it you that was for on are with as his they be at have this from or had by but
    what some we can out other were all there when up your how said each she which do their if will
    way about many then them would like these her him has could more did my who its been just into
    i i'm im i've ive i'll i'd you're youre it's its that's thats don't dont didn't haven't havent
    what's he's can't wasn't not any very much too also really good great love loved nice fun funny
    best better see seen saw watch watched think know enjoy enjoyed like liked likes looking look
    looks try sure thanks thank hello hi hey yes yeah yep okay ok sounds recommend suggest movie
    movies film films one ones so well great haven't maybe right never ever bye day today happy help
    want something anything kind good should one here time new old again only than because get got
    go going let give been am
    """.split()
)


class Shares(NamedTuple):
    """How English a text looks.

    Attributes:
        ascii: share of its letters that are ASCII.
        english: share of its words that are common English ones; None where it has too few.
    """

    ascii: float
    english: float | None


def shares(texts: Iterable[str]) -> Shares:
    """How English these texts look together; slots of films do not count.

    >>> shares(["Hi! Have you seen <movie>?", "Yes, and I loved it, thank you."])
    Shares(ascii=1.0, english=1.0)
    >>> shares(["Hola, busco una pelícu\\u200bla divertida para ver con mis hijos"]).english
    0.0
    """
    text = " ".join(texts).replace(SLOT, " ")
    letters = sum(map(str.isalpha, text))
    ascii_letters = sum(map(str.isalpha, text.encode("ascii", "ignore").decode()))
    words = WORD.findall(text.casefold().replace("\u2019", "'"))
    english = sum(word in COMMON for word in words) / max(1, len(words))
    return Shares(
        ascii_letters / letters if letters else 1.0, english if len(words) >= FEWEST else None
    )
