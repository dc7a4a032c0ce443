"""The word lists of the judge of rules: closed classes of English, moods and answers, talk of films.

In: words, or a turn. Out: what they are: a greeting, a leave-taking, a mood and what answers it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from shielded_recrl.dialogue.emotion.labels import EMOTIONS
from shielded_recrl.dialogue.emotion.lexicon import probabilities
from shielded_recrl.dialogue.judges.base import read


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARTICLES = _words("a an the my your their our its every")
PREPOSITIONS = _words("of at from into with by for about as than")
LINKS = _words("and or but because if while although")
VERBS = _words("is are was were am be been has have had do does did will would can could")
PRONOUNS = _words("i you he she we they me him us them it")
SHORTENED = _words("i'm i've i'd i'll you're it's that's we're they're he's she's very")
# No text and no clause ends on these.
NEEDS_MORE = ARTICLES | SHORTENED | _words("of at into by as than and or because if while although")
# Word -> words that never come right after it.
NEVER_AFTER: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        ARTICLES,
        ARTICLES | PREPOSITIONS | LINKS | VERBS | PRONOUNS | _words("that's it's i'm to"),
    ),
    **dict.fromkeys(
        PREPOSITIONS, PREPOSITIONS - _words("as about") | LINKS - {"if"} | VERBS - {"do"}
    ),
    **dict.fromkeys(LINKS, LINKS | _words("of than")),
    **dict.fromkeys(SHORTENED, VERBS - _words("been be have had do") | _words("i we they of")),
}
NEVER_AFTER_I = ARTICLES | PREPOSITIONS | _words("is are were i you it me them what to")
# Words whose capital only a sentence's beginning explains.
OPENERS = (
    ARTICLES
    | PREPOSITIONS
    | LINKS
    | VERBS
    | PRONOUNS - _words("i it")
    | _words("what how which who when where so yes no not that this there hello hi")
)

YOU = _words("you your you're you'll you'd you've u ur yours")
# Words of which English sentences are built, whatever they are about.
BUILDING = (
    ARTICLES
    | PREPOSITIONS
    | LINKS
    | VERBS
    | PRONOUNS
    | SHORTENED
    | YOU
    | _words("to in on that this so not too what which there")
)
GREETINGS = _words("hi hello hey hiya greetings howdy morning evening afternoon")
THANKS = _words("thanks thank thankyou thx appreciate")
LEAVING = _words("bye goodbye goodnight")
FAREWELL = LEAVING | _words("enjoy welcome weekend farewell cya later")
ASKING = _words(
    "what which who how why when where do does did have has is are was were can could would will "
    "should any haven't don't didn't seen like into"
)
# A longer turn that thanks asks for more.
LONGEST_LEAVE = 25

JOY = _words(
    "great good awesome nice love loved cool glad yes yeah fun amazing classic excellent wonderful "
    "perfect agree too enjoyed definitely favorite fantastic happy haha oh me also"
)
ANSWERING = _words(
    "yes no yeah sure it's well not i've course definitely yep nope how there absolutely ok "
    "okay maybe try"
)
SYMPATHY = _words(
    "sorry understand oh okay ok worries instead maybe too sad haven't agree hmm alright shame "
    "unfortunately either bad try"
)
PARTING = _words(
    "welcome bye goodbye enjoy problem glad happy pleasure hope anytime thanks thank too care "
    "night weekend"
)
# Mood -> words of which a kind reply has one among its first; moods are emotions, and two more.
REACTIONS: dict[str, frozenset[str]] = {
    "greeting": _words("hi hello hey welcome good great how doing morning evening"),
    "closing": PARTING,
    "like": JOY,
    "curious": ANSWERING,
    "happy": JOY,
    "grateful": PARTING,
    "negative": SYMPATHY,
    "neutral": JOY | ANSWERING | SYMPATHY,
    "nostalgia": JOY | _words("remember old childhood years"),
    "agreement": JOY | PARTING,
    "surprise": JOY | ANSWERING,
}
# Warmth is welcome once or twice; see `rules.WARM`.
WARMTH = _words(
    "love loved great awesome amazing wonderful fantastic perfect excellent best brilliant lovely "
    "sweet dear incredible beautiful genius sorry understand glad happy"
)

GENRES = _words(
    "comedy comedies horror action drama dramas thriller thrillers romance romantic scifi fantasy "
    "animated animation documentary documentaries mystery western superhero disney musical crime "
    "war family scary adventure"
)
FILM = GENRES | _words(
    "movie movies film films actor actors actress director plot story cast stars starring sequel "
    "series ending funny cute classic oscar trailer theater theaters netflix version remake "
    "characters scene scenes genre music special effects hilarious suspense"
)
TASTE = _words("kind kinds type types genre genres favorite like into looking mood enjoy")
KINDS = _words("kind kinds type types genre genres sort sorts")
OFFERS = _words(
    "seen try watch recommend suggest check heard like how would suggestion maybe consider there "
    "also another love"
)
REASONS = FILM | _words(
    "because about with if similar same too love loved great good awesome amazing favorite enjoyed "
    "enjoy like liked fun nice cool excellent perfect wonderful fantastic best interesting"
)
INVITES = _words("let tell hope know maybe try check if else more")
# Words that tell nothing by themselves.
COMMON = (
    ARTICLES
    | PREPOSITIONS
    | LINKS
    | VERBS
    | PRONOUNS
    | YOU
    | GREETINGS
    | THANKS
    | _words(
        "to in on out up so too very just that this those these there here what which who how when "
        "where why not no yes yeah ok okay oh well also all any some one ones it's i'm i've don't "
        "didn't haven't i'd i'll that's really great good like love know think seen see watch "
        "watched heard get got more much many other another most should may might being sure maybe "
        "even only then now never ever still again her his hers welcome day nice movie movies film "
        "films awesome bye enjoy cool want lot haha lol glad hope"
    )
)


def is_greeting(words: Collection[str]) -> bool:
    """Whether a turn opens a dialogue."""
    return not GREETINGS.isdisjoint(words)


def is_closing(words: Collection[str]) -> bool:
    """Whether a turn takes its leave: short thanks, or a farewell."""
    return len(words) <= LONGEST_LEAVE and not (THANKS | LEAVING).isdisjoint(words)


@lru_cache(8192)
def mood(turn: str) -> str:
    """How a turn of the seeker sounds: it greets, takes its leave, or its strongest emotion.

    >>> mood("Thanks, bye!"), mood("That was boring.")
    ('closing', 'negative')
    """
    words = read(turn).words
    if is_closing(words):
        return "closing"
    if is_greeting(words) or not words:
        return "greeting"
    return EMOTIONS[int(probabilities([turn])[0].argmax())]
