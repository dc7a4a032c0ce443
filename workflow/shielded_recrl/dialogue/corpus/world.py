"""The latent world behind the embedded dialogues: tastes, opinions, feelings.

In: sizes and a generator. Out: films and dialogues about them.

The films, their categories and aspects, and how well each suits a seeker (`affinity`, z-scores over
films) are those of `shielded_recrl.data.latent`. What there is to be learned:

    co-occurrence   a seeker names films drawn from softmax(2.5 affinity + 0.5 appeal), and so does
                    the recommender suggest them; a liked film with a sequel often brings it up
    emotion         a film that a seeker did not like is drawn from the unsuited ones, and is named
                    with words of disappointment: it tells what not to suggest
    words           a seeker names the favourite category, a suggestion the film's
    feedback        one in seven suggestions is drawn by appeal alone, and mostly disliked
    repeats         films come up again: "since you liked ...", "I have seen ..."
    responses       some recommenders are plain, others answer a feeling and say why

The taste itself is never written to a raw file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shielded_recrl.data.latent import Item, draw_affinity, draw_items
from shielded_recrl.data.words import ASPECTS
from shielded_recrl.dialogue.corpus import phrases
from shielded_recrl.dialogue.corpus.dialogues import DISLIKED, LIKED, NOT_SAID, RECOMMENDER, SEEKER
from shielded_recrl.dialogue.settings import DialogueWorldSettings

DOMAIN = "ml25m"
SUITS, APPEALS = 2.5, 0.5
# Shares of what happens: drawn by appeal alone, a sequel brought up, a rich recommender.
ASTRAY, SEQUELS, RICH = 0.15, 0.6, 0.6
PLEASED = ("admiration", "amusement", "excitement", "joy", "love")
DISPLEASED = ("annoyance", "disappointment", "disapproval", "disgust")
TEMPTED = ("approval", "curiosity", "desire", "excitement", "optimism")


@dataclass(frozen=True)
class Opinion:
    """What a seeker says of a film: whether it was suggested; seen, liked: 0, 1, or 2 not said."""

    suggested: int
    seen: int
    liked: int


@dataclass
class Talk:
    """A dialogue: messages of a role and a text, in which `@3` is the film with index 3."""

    messages: list[tuple[str, str]] = field(default_factory=list)
    opinions: dict[int, Opinion] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """Films and the dialogues about them."""

    films: tuple[Item, ...]
    talks: tuple[Talk, ...]


def draw_world(settings: DialogueWorldSettings, rng: np.random.Generator) -> World:
    """Draw films, seekers and a dialogue with each.

    Raises:
        UserError: more films than the vocabulary has names for.
    """
    films = draw_items(DOMAIN, settings.films, rng)
    affinity = draw_affinity(DOMAIN, films, settings.dialogues, rng)
    appeal = rng.normal(size=len(films))
    return World(films, tuple(Scene(films, suits, appeal, rng).play() for suits in affinity))


class Scene:
    """One seeker and one recommender, who talk film after film."""

    def __init__(
        self,
        films: Sequence[Item],
        affinity: np.ndarray,
        appeal: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        """
        Args:
            films: all films.
            affinity: how well each suits the seeker, (films,).
            appeal: how well known each is, (films,).
            rng: draws all that is said.
        """
        self._films, self._affinity, self._appeal, self._rng = films, affinity, appeal, rng
        self._rich = rng.random() < RICH
        self._talk = Talk()
        # How the seeker took the last film, and the films taken well.
        self._mood = "plain"
        self._liked: list[int] = []

    def play(self) -> Talk:
        """The whole dialogue."""
        self._open()
        for _ in range(self._rng.integers(2, 5)):
            film = self._suggest()
            self._react(film)
        self._close()
        return self._talk

    def _open(self) -> None:
        if self._chance(0.6):
            self._say(RECOMMENDER, self._one(phrases.GREETINGS), self._one(phrases.ASKS))
        else:
            self._say(SEEKER, self._one(phrases.GREETINGS), self._one(phrases.HOW_ARE_YOU))
            self._say(RECOMMENDER, self._one(phrases.GREETINGS), self._one(phrases.ASKS))
        best = self._films[int(np.argmax(self._affinity))]
        wish = self._one(phrases.WANTS).format(**_kinds(best))
        pleased = self._chance(0.65)
        sign = 1.0 if pleased else -1.0
        film = self._draw(sign * SUITS * self._affinity + APPEALS * self._appeal)
        self._say(SEEKER, wish, self._feel(film, pleased))
        self._note(film, 0, 1, pleased)
        if self._chance(0.4):
            film = self._draw(SUITS * self._affinity + APPEALS * self._appeal)
            self._say(SEEKER, self._feel(film, True))
            self._note(film, 0, 1, True)

    def _suggest(self) -> int:
        """The recommender names a film, and says why if that is their way."""
        sequel = self._liked[-1] + 1 if self._liked else 0
        follows = (
            0 < sequel < len(self._films)
            and self._films[sequel].volume > 1
            and sequel not in self._talk.opinions
        )
        astray = self._chance(ASTRAY)
        parts = [self._one(phrases.EMPATHY[self._mood])] if self._rich or self._chance(0.2) else []
        second = None
        if follows and not astray and self._chance(SEQUELS):
            film, forms = sequel, phrases.SEQUEL
        else:
            suits = 0.0 if astray else SUITS
            film = self._draw(suits * self._affinity + (1 if astray else APPEALS) * self._appeal)
            forms = phrases.RICH if self._rich else phrases.PLAIN
            if self._rich and self._liked and self._chance(0.4):
                forms = phrases.BECAUSE
            elif self._chance(0.15):
                forms = phrases.TWO
                second = self._draw(SUITS * self._affinity + APPEALS * self._appeal, film)
        words = {"film": f"@{film}", "second": f"@{second}", **_kinds(self._films[film])}
        if self._liked:
            words["liked"] = f"@{self._liked[-1]}"
        aspect = self._one(self._films[film].aspects)
        self._say(RECOMMENDER, *parts, self._one(forms).format(aspect=aspect, **words))
        if second is not None:
            self._note(second, 1, 2, None)
        return film

    def _react(self, film: int) -> None:
        """The seeker answers, and asks first where curious."""
        name = f"@{film}"
        taste = self._affinity[film] + self._rng.normal(0, 0.5)
        if self._chance(0.1):
            self._say(SEEKER, self._one(phrases.UNKNOWN).format(film=name))
            self._note(film, 1, 0, None)
            return
        seen, pleased = self._chance(0.45), bool(taste > 0.3)
        if not seen and self._chance(0.4):
            self._say(
                SEEKER, self._one(phrases.UNSEEN).format(film=name), self._tell("curiosity", film)
            )
            about = (
                self._one(phrases.ABOUT) if self._rich else self._one(phrases.EMPATHY["curious"])
            )
            item = self._films[film]
            self._say(
                RECOMMENDER, about.format(year=item.year, aspect=item.aspects[0], **_kinds(item))
            )
        parts = []
        if self._chance(0.15):
            parts.append(self._tell("surprise", film))
        if seen:
            parts += [self._one(phrases.SEEN).format(film=name), self._feel(film, pleased)]
        elif pleased:
            parts += [self._tell(self._one(TEMPTED), film), self._one(phrases.ADDED)]
        else:
            parts.append(self._tell("disapproval", film))
        self._say(SEEKER, *parts)
        self._note(film, 1, int(seen), pleased)
        if pleased and not seen:
            self._mood = "curious"

    def _close(self) -> None:
        self._say(
            SEEKER,
            _sentence(self._one(phrases.FEELINGS["gratitude"]).format(it="the suggestions")),
            self._one(phrases.GOODBYE[SEEKER]),
        )
        last = self._liked[-1] if self._liked else next(reversed(self._talk.opinions))
        goodbye = self._one(phrases.GOODBYE[RECOMMENDER])
        self._say(RECOMMENDER, goodbye.format(film=f"@{last}"))

    def _note(self, film: int, suggested: int, seen: int, pleased: bool | None) -> None:
        """Remember what the seeker thinks of a film; None is nothing."""
        liked = NOT_SAID if pleased is None else LIKED if pleased else DISLIKED
        self._talk.opinions[film] = Opinion(suggested, seen, liked)
        self._mood = {DISLIKED: "sad", LIKED: "happy", NOT_SAID: "plain"}[liked]
        if pleased:
            self._liked.append(film)

    def _feel(self, film: int, pleased: bool) -> str:
        """A sentence on a film that was seen."""
        if pleased and self._chance(0.15):
            return _sentence(self._one(phrases.NOSTALGIA).format(it=f"@{film}"))
        return self._tell(self._one(PLEASED if pleased else DISPLEASED), film)

    def _tell(self, feeling: str, film: int) -> str:
        aspect = self._one(self._films[film].aspects)
        form = self._one(phrases.FEELINGS[feeling])
        return _sentence(form.format(it=f"@{film}", aspect=aspect))

    def _say(self, role: str, *parts: str) -> None:
        """One message, or one a sentence, as people type them."""
        texts = parts if self._chance(0.3) else (" ".join(parts),)
        for text in texts:
            if self._chance(0.2):
                text = text.casefold().removesuffix(".")
            self._talk.messages.append((role, text))

    def _draw(self, logits: np.ndarray, *others: int) -> int:
        """A film that was not named yet, from the softmax of the logits."""
        logits = logits + self._rng.gumbel(size=len(logits))
        logits[[*self._talk.opinions, *others]] = -np.inf
        return int(np.argmax(logits))

    def _one(self, among: Sequence[str]) -> str:
        return _any(among, self._rng)

    def _chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)


def _kinds(film: Item) -> dict[str, str]:
    """A film's categories as they are spoken of."""
    return {"category": film.categories[0].lower(), "other": film.categories[1].lower()}


def _sentence(text: str) -> str:
    """With a capital first letter, and an end."""
    ended = text if text[-1] in ".?!" else f"{text}."
    return ended[0].upper() + ended[1:]


def draw_comments(count: int, rng: np.random.Generator) -> list[tuple[str, tuple[int, ...]]]:
    """Comments as in GoEmotions: a text, and the numbers of its labels.

    One in seven tells two feelings, and one in twenty has a label that is not its own.
    """
    labels = list(phrases.FEELINGS)
    weights = np.array([phrases.WEIGHTS.get(label, 1.0) for label in labels])
    comments = []
    for _ in range(count):
        told = rng.choice(
            len(labels), size=1 + (rng.random() < 0.15), replace=False, p=weights / weights.sum()
        )
        text = " ".join(_comment(labels[label], rng) for label in told)
        if rng.random() < 0.3:
            text = _sentence(f"{_any(phrases.FILLERS, rng)} {text[0].lower()}{text[1:]}")
        if rng.random() < 0.05:
            told = rng.choice(len(labels), size=1)
        comments.append((text, tuple(sorted(map(int, told)))))
    return comments


def _comment(label: str, rng: np.random.Generator) -> str:
    form = _any((*phrases.FEELINGS[label], *phrases.SPOKEN.get(label, ())), rng)
    thing = _any(phrases.THINGS, rng)
    return _sentence(form.format(it=thing, film=thing, aspect=_any(ASPECTS[DOMAIN], rng)))


def _any(among: Sequence[str], rng: np.random.Generator) -> str:
    return among[rng.integers(len(among))]
