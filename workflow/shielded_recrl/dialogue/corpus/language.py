"""Whether a dialogue is English, told without a model: by its letters and its commonest words.

In: the texts of a dialogue. Out: three shares. A list of languages would need a model of each; here
only English has to be told from all others, and in a dialogue of some dozens of words about every
second one is among the commonest of its language. Words that are as common elsewhere ("me", "no",
"son", "die") are left out.

Who mixes English with another language has as many of its words as an English dialogue. What tells
then are the commonest words of that language, which nobody needs who speaks English alone.
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


# Of Hindi and Urdu in Latin letters, Spanish, French, German, Italian, Portuguese, Dutch, Indonesian
# and Filipino. Not among them: English words ("per", "war"), and those of well-known names and titles
# ("la", "del", "van", "dan").
ELSEWHERE = frozenset(
    """
    hai hain nahi nahin kya kyun kyu kaise kaisi kaun kahan mujhe tujhe mera meri mere tumhara tumhare
    tumhe tum aap aapko aapne humein yaar bhai achha acha achhi acchi accha bahut bohot bhi toh raha
    rahi rahe tha thi kar karo karna karta karte dekha dekhi dekho dekhna batao chahiye wala wali wale
    vala aur lekin matlab haan koi kuch kisi bilkul mein liye gaya gayi hoga abhi kabhi sirf jaise waise
    pasand dost yeh woh jo ki ka ke ko
    que los las una por para pero muy gracias pelicula peliculas película películas algo tengo quiero
    también tambien hola esta este mas más cuando porque gusta nada bueno buena
    je pour dans avec vous nous mais pas une merci bonjour ce cette est sont les des du il elle qui
    c'est j'ai
    ich nicht und der das ist ein eine auf mit fur für aber auch sehr wie dir mir mich habe kann suche
    guten
    che di il sono una hai questo molto anche grazie cosa ciao vedere bello
    nao não voce você uma obrigado filme muito isso eu tem bom gostei
    een het niet ik voor maar ook goede zoek naar dat zijn kijken
    yang saya tidak untuk dengan ini itu sudah bagus nonton apa ada suka kamu aku
    ako ikaw naman talaga gusto maganda yung kasi ng mga salamat
    """.split()
)


class Shares(NamedTuple):
    """How English a text looks; one of too few words looks English.

    Attributes:
        ascii: share of its letters that are ASCII.
        english: share of its words that are common English ones.
        foreign: share of its words that are common ones of another language.
    """

    ascii: float
    english: float
    foreign: float


def shares(texts: Iterable[str]) -> Shares:
    """How English these texts look together; slots of films do not count.

    >>> shares(["Hi! Have you seen <movie>?", "Yes, and I loved it, thank you."])
    Shares(ascii=1.0, english=1.0, foreign=0.0)
    >>> shares(["Have you seen <movie>? bahut achhi hai", "nahi, but I will"]).foreign
    0.4
    """
    text = " ".join(texts).replace(SLOT, " ")
    letters = sum(map(str.isalpha, text))
    ascii_letters = sum(map(str.isalpha, text.encode("ascii", "ignore").decode()))
    share = ascii_letters / letters if letters else 1.0
    words = WORD.findall(text.replace("\u2019", "'"))
    if len(words) < FEWEST:
        return Shares(share, 1.0, 0.0)
    english = sum(word.casefold() in COMMON for word in words)
    # With a capital it may be a title that somebody typed, "Kuch Kuch Hota Hai".
    foreign = sum(word in ELSEWHERE for word in words)
    return Shares(share, english / len(words), foreign / len(words))
