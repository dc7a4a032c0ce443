"""Emotions by a list of words: no training, no files, and the only source of nostalgia.

In: texts. Out: a distribution over the nine emotions. Each cue in a text counts two for its emotion,
and neutral has one from the start: a text without cues is neutral. After a "not", a cue of something
good counts as negative, and any other counts for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from shielded_recrl.dialogue.emotion.features import plain
from shielded_recrl.dialogue.emotion.labels import EMOTIONS

# A star stands for any ending.
CUES = {
    "like": """love*, i like, i liked, i really like*, i also like*, like it, liked it, like that,
        liked that, like them, adore*, admir*, amazing, great, good, best, better, nice, excellent,
        brilliant, wonderful, fantastic, beautiful*, perfect*, superb, favorite*, favourite*, awesome,
        cool, impressive, masterpiece*, well done, enjoy*, want to see, want to watch, i wish, fan of,
        take care, feel better, get well, bless""",
    "curious": """?, curious, wonder if, wondering, what kind*, what type*, what about, how about,
        who is in, who stars, tell me, have you seen, have you heard, confus*, not sure, don't know,
        dont know, never heard, haven't heard, havent heard, not heard, looking for""",
    "happy": """haha*, hehe*, lol, lmao, rofl, funny, hilarious*, laugh*, joke*, fun, happy, glad, joy*,
        excit*, can't wait, cant wait, cannot wait, looking forward, delight*, yay, woohoo, hope,
        hopefully, so proud, relie*, phew, pumped, :), :-), :d, ;)""",
    "grateful": "thank*, thx, ty, appreciat*, grateful, gratitude",
    "negative": """hate*, dislike*, bad, worst, worse, terribl*, horribl*, awful, boring, bored, sad*,
        sorry, disappoint*, annoy*, angr*, mad, stupid, dumb, idiot*, crap*, suck*, wtf, fuck*, shit*,
        damn*, ugh, gross, disgust*, scared, afraid, nervous, worri*, embarrass*, asham*, cry, crying,
        cried, lame, waste of, ridiculous, regret*, disagree*, wrong, overrated, trash, garbage,
        poorly, don't care, :(, :-(""",
    "nostalgia": """nostalgi*, childhood, grew up, growing up, as a kid, as a child, when i was a,
        when i was little, when i was young*, when i was in, when we were, my youth, back in the day,
        good old, old times, old days, fond memories, memories of, brings back, brought back,
        takes me back, remember watching, remember seeing, remember when, used to watch, used to love,
        seen it in years, seen that in years, seen it in forever, oldie*, throwback""",
    "agreement": """agree, agreed, exactly, true, you're right, youre right, you are right,
        that's right, is right, absolutely, definitely, of course, indeed, for sure, sounds good,
        sounds great, good point, good idea, good choice, good call, me too, same here, fair enough,
        ok, okay, okey, yep, yup, yeah, will do, i'll check, ill check, i will check, i'll have to,
        ill have to, i will have to, i'll watch, i will watch""",
    "surprise": """wow*, whoa, omg, oh my, surpris*, unexpected*, shock*, no way, can't believe,
        cant believe, cannot believe, unbelievabl*, didn't know, didnt know, had no idea, never knew,
        realiz*, realis*, turns out, i forgot, holy""",
}
GOOD = ("like", "happy", "agreement")
NOT = re.compile(
    r"\b(?:not|no|never|nothing|neither|nor|without|hardly|cannot|[a-z]+n't|dont|didnt|isnt|wasnt)"
    r"(?:\s+[\w']+){0,2}\s*$"
)
# Letters before a cue in which a "not" is looked for: all of a long text would take minutes.
BEFORE = 80
WEIGHT, START = 2.0, 1.0
NEGATIVE, NEUTRAL = EMOTIONS.index("negative"), EMOTIONS.index("neutral")


def _expression(cue: str) -> str:
    text = re.escape(cue).replace(r"\*", r"\w*")
    return rf"(?<![\w'])(?:{text})(?!\w)" if cue[0].isalpha() else text


def _patterns() -> dict[int, re.Pattern[str]]:
    """An expression for all cues of each emotion, longer ones first."""
    return {
        EMOTIONS.index(emotion): re.compile(
            "|".join(
                _expression(cue) for cue in sorted(re.split(r",\s+", cues), key=len, reverse=True)
            )
        )
        for emotion, cues in CUES.items()
    }


PATTERNS = _patterns()


def probabilities(texts: Sequence[str]) -> np.ndarray:
    """Distribution [n, 9] of the emotions of texts.

    >>> dict(zip(EMOTIONS, probabilities(["It was not good."])[0].round(2).tolist()))["negative"]
    0.67
    """
    counts = np.array([_counts(plain(text)) for text in texts]).reshape(-1, len(EMOTIONS))
    return counts / counts.sum(axis=1, keepdims=True)


def _counts(text: str) -> np.ndarray:
    counts = np.zeros(len(EMOTIONS))
    counts[NEUTRAL] = START
    for place, pattern in PATTERNS.items():
        for cue in pattern.finditer(text):
            if not NOT.search(text[max(0, cue.start() - BEFORE) : cue.start()]):
                counts[place] += WEIGHT
            elif EMOTIONS[place] in GOOD:
                counts[NEGATIVE] += WEIGHT
    return counts
