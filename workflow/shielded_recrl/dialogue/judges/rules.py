"""A judge of rules: lexicons, question marks, places of closed-class words, slots against titles.

Its rules are about English as people type it when they talk of films. Each head counts what speaks
for it and is multiplied by how sound the text is, so that no head can be had by what breaks the text:

    sound = in order * in place * built * varied * of its own * of measure * fit for a slot

    in order    closed-class words stand before what may follow them ("of the", never "the of"), the
                text does not end on one, and capitals stand where sentences begin
    in place    a greeting opens, taste is asked for early, and leave is taken of who takes it
    built       a text of some length has enough words of which sentences are built
    varied      hardly any pair of words comes twice
    of its own  it is not a row of words of the dialogue so far
    of measure  up to 60 words; beyond, the longer the less
    for a slot  films stand in slots: a title or a year written out is no recommendation

In: a `base.Case`. Out: scores of five heads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from shielded_recrl.dialogue.corpus.dialogues import SLOT, Turn
from shielded_recrl.dialogue.judges import words as lexicon
from shielded_recrl.dialogue.judges.base import (
    Case,
    Reading,
    Scores,
    bounded,
    is_end,
    nothing,
    plain,
    read,
)
from shielded_recrl.rl.text import ngrams

# A text of more words than this grows no better by growing.
LONG = 60
# Films that one turn can introduce; some words that each of them needs beside it.
MANY_FILMS, WORDS_PER_FILM = 3, 3
# Words of feeling that are warmth; more of them are flattery.
WARM = 2
# Turns with which a dialogue opens, and what is left of a text out of place.
OPENING_TURNS, OUT_OF_PLACE = 3, 0.5
# Words within which a reply reacts.
REACTION_WORDS = 12
# Words of a text that has to have so large a share of words that build sentences.
BUILT_FROM, BUILDING_SHARE = 8, 0.3
YEAR = re.compile(r"\((?:19|20)\d\d\)")
# Shorter titles are words like any other: It, Heat, Up.
TITLE_WORDS = 2


class Rules:
    """The embedded judge whose scores the critic is trained on. A `Judge`."""

    def __init__(self, titles: Collection[str] = ()) -> None:
        """
        Args:
            titles: all known films, to find those that are written out.
        """
        self._titles: set[tuple[str, ...]] = set()
        for title in titles:
            words = read(YEAR.sub("", title)).words
            if len(words) >= TITLE_WORDS:
                self._titles.add(words)
        self._lengths = sorted({len(title) for title in self._titles})

    def __call__(self, case: Case) -> Scores:
        """Score a response."""
        context, said = case.context, read(case.text)
        if not said.words and not said.slots:
            return nothing()
        turn = context[-1].text if context else ""
        asked = read(turn)
        sound = (
            in_order(said)
            * in_place(context, turn, said)
            * built(said)
            * varied(said)
            * of_its_own(said, context)
            * min(1.0, LONG / max(len(said.words), 1))
            * (0.4 if self._written_out(case.text, said) else 1.0)
        )
        scores = {
            "empathy": empathy(turn, said),
            "informativeness": informativeness(context, said),
            "recommendation": recommendation(context, asked, said, len(case.titles)),
            "engagement": engagement(asked, said),
        }
        scores = {head: bounded(sound * score) for head, score in scores.items()}
        return {**scores, "overall": sum(scores.values()) / len(scores)}

    def _written_out(self, response: str, said: Reading) -> bool:
        """Whether the text names a film outside of a slot."""
        if YEAR.search(response):
            return True
        return any(
            gram in self._titles for length in self._lengths for gram in ngrams(said.words, length)
        )


def in_order(said: Reading) -> float:
    """1 where every word may stand before the next; 0 where one in four may not."""
    faults, places = 0, 0
    tokens = said.tokens
    for place, token in enumerate(tokens):
        if is_end(token):
            continue
        places += 1
        word = plain(token)
        following = tokens[place + 1] if place + 1 < len(tokens) else "."
        mark = not following[0].isalnum() and following != SLOT
        then = plain(following)
        if word in lexicon.NEEDS_MORE and (mark or then in lexicon.NEVER_AFTER.get(word, ())):
            faults += 2 if place + 1 >= len(tokens) else 1
        elif word == "i" and (then == SLOT or then in lexicon.NEVER_AFTER_I):
            faults += 1
        # A capital within a sentence is a name's, and these words are in no name's middle.
        inside = place and not is_end(tokens[place - 1])
        if inside and token[0].isupper() and word in lexicon.OPENERS and len(token) > 1:
            faults += 0.5
    return bounded(1 - 4 * faults / max(places, 6))


def in_place(context: Sequence[Turn], turn: str, said: Reading) -> float:
    """1 where the text fits how far the dialogue has come; half of it for each way in which not."""
    words = set(said.words)
    mood = lexicon.mood(turn)
    taking_leave = bool(words & lexicon.LEAVING) or "welcome" in words
    misplaced = (
        len(context) >= OPENING_TURNS
        and lexicon.is_greeting(said.words[:3])
        and mood != "greeting",
        len(context) >= 2 * OPENING_TURNS
        and bool(words & lexicon.KINDS)
        and bool(words & {"what"}),
        taking_leave and mood not in ("closing", "grateful"),
        bool(lexicon.LEAVING & set(read(turn).words)) and not words & lexicon.PARTING,
        len(context) < OPENING_TURNS and mood == "greeting" and not _opens(said),
    )
    return OUT_OF_PLACE ** sum(misplaced)


def _opens(said: Reading) -> bool:
    """Whether a text greets, asks or offers a film: what the first turns are for."""
    asks = any("?" in token for token in said.tokens)
    return lexicon.is_greeting(said.words) or asks or said.slots > 0


def built(said: Reading) -> float:
    """1 where three words in ten are articles, pronouns and the like, 0 below half of that.

    Of people's responses of eight words or more, nine in ten have as many; a row of cue words has not.
    """
    if len(said.words) < BUILT_FROM:
        return 1.0
    share = sum(word in lexicon.BUILDING for word in said.words) / len(said.words)
    return bounded(2 * share / BUILDING_SHARE - 1)


def varied(said: Reading) -> float:
    """1 where hardly any pair of words comes twice; 0 where half of them do."""
    pairs = ngrams([token.lower() for token in said.tokens], 2)
    if len(pairs) < 2:
        return 1.0
    return bounded(1 - 2.5 * (1 - len(set(pairs)) / len(pairs) - 0.1))


def of_its_own(said: Reading, context: Sequence[Turn]) -> float:
    """1 where less than a quarter of the words stand four in a row in the dialogue so far."""
    if len(said.words) < 4:
        return 1.0
    known = {gram for turn in context for gram in ngrams(read(turn.text).words, 4)}
    copied = [False] * len(said.words)
    for start, gram in enumerate(ngrams(said.words, 4)):
        if gram in known:
            copied[start : start + 4] = [True] * 4
    return bounded(1 - 4 / 3 * (sum(copied) / len(copied) - 0.25))


def empathy(turn: str, said: Reading) -> float:
    """Whether the reply takes up how the seeker's last turn sounds, in words that fit, not in many."""
    mood = lexicon.mood(turn)
    reaction = not lexicon.REACTIONS[mood].isdisjoint(said.words[:REACTION_WORDS])
    warm = sum(word in lexicon.WARMTH for word in said.words)
    measure = WARM / max(warm, WARM)
    speaks_to = any(word in lexicon.YOU for word in said.words)
    return measure * (0.25 + 0.5 * reaction + 0.25 * speaks_to)


def informativeness(context: Sequence[Turn], said: Reading) -> float:
    """Content words that the dialogue has not had, saturating; talk of films counts, and to the point."""
    known = {word for turn in context for word in read(turn.text).words}
    content = {word for word in said.words if word not in lexicon.COMMON and len(word) > 2}
    new = len(content - known) + 0.5 * len(content & known)
    told = new + min(said.slots, 2)
    dense = bounded(told / max(len(said.words) + said.slots, 1) / 0.25)
    amount = told / (told + 3)
    about = content & lexicon.FILM
    wanted = {word for turn in context[-4:] for word in read(turn.text).words} & lexicon.GENRES
    named = content & lexicon.GENRES
    beside = bool(named and wanted and not named & wanted)
    return dense * amount * (0.7 + 0.3 * bool(about)) * (0.6 if beside else 1.0)


def recommendation(
    context: Sequence[Turn], asked: Reading, said: Reading, recommended: int
) -> float:
    """Whether films come where they are wanted, as many as can be taken in, and with a word of reason."""
    closing = lexicon.is_closing(asked.words)
    backed = min(said.slots, recommended)
    if not backed:
        asks_taste = "?" in "".join(said.tokens) and bool(set(said.words) & lexicon.TASTE)
        early = len(context) <= 3
        return 0.4 if closing else (0.5 if early else 0.3) * asks_taste
    words = set(said.words)
    reason = bool(words & lexicon.OFFERS) + bool(words & lexicon.REASONS)
    fit = 0.6 + 0.2 * reason
    spare = min(1.0, len(said.words) / (WORDS_PER_FILM * said.slots))
    measure = min(1.0, MANY_FILMS / said.slots) * backed / said.slots
    return fit * spare * measure * (0.6 if closing else 1.0)


def engagement(asked: Reading, said: Reading) -> float:
    """Whether the reply asks, invites or sees off as the moment wants it."""
    closing = lexicon.is_closing(asked.words)
    words = set(said.words)
    questions = well_formed_questions(said)
    marks = sum("?" in token for token in said.tokens)
    leaves = bool(words & lexicon.FAREWELL)
    if closing:
        return 0.3 + 0.5 * leaves
    measure = 2 / max(marks, 2)
    invites = bool(words & lexicon.INVITES)
    speaks_to = bool(words & lexicon.YOU)
    return 0.1 + 0.5 * bool(questions) * measure + 0.2 * invites + 0.2 * speaks_to


def well_formed_questions(said: Reading) -> int:
    """Sentences that end in a question mark and have a word that asks, and two more."""
    questions, words = 0, []
    for token in said.tokens:
        if not is_end(token):
            words.append(plain(token))
            continue
        if "?" in token and len(words) >= 3 and set(words) & lexicon.ASKING:
            questions += 1
        words = []
    return questions
