"""What was said before a film was named: the input of the recommender.

In: a dialogue and a place in it. Out: the films named so far with who named them, how long ago and
with which emotion, and the words so far. A questionnaire's answers are no part of it: they are
given after the dialogue, and serve as labels alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from shielded_recrl.dialogue.corpus.dialogues import NOT_SAID, SEEKER, Dialogue, targets
from shielded_recrl.dialogue.recommender.items import words

# ECR's labels in its order, and the weights it gives them.
EMOTION_WEIGHTS = {
    "like": 2.0,
    "curious": 1.5,
    "happy": 2.0,
    "grateful": 1.5,
    "negative": 1.0,
    "neutral": 0.5,
    "nostalgia": 1.5,
    "agreement": 1.5,
    "surprise": 1.5,
}
NEUTRAL = "neutral"
# By dialogue and turn: at most three emotions with their probabilities.
Emotions = Mapping[tuple[int, int], Sequence[tuple[str, float]]]


class Mention(NamedTuple):
    """A film that was named.

    Attributes:
        item: the film.
        role: who named it.
        age: turns since.
        emotions: of the seeker who named it or answered, each with its share; may be empty.
    """

    item: int
    role: str
    age: int
    emotions: tuple[tuple[str, float], ...]


class Context(NamedTuple):
    """All that a recommender may look at.

    Attributes:
        dialogue: number of the dialogue.
        mentions: films named, in order.
        words: word -> turns since it was said last.
    """

    dialogue: int
    mentions: tuple[Mention, ...]
    words: dict[str, int]

    @property
    def named(self) -> set[int]:
        """Films that are no new ones."""
        return {mention.item for mention in self.mentions}


class Sample(NamedTuple):
    """A context and the film to be predicted from it; the fields of `dialogues.Target`."""

    context: Context
    turn: int
    item: int
    is_repeat: bool
    liked: int


def context_before(dialogue: Dialogue, turn: int, emotions: Emotions) -> Context:
    """What was said before a turn."""
    return _context(dialogue, turn, range(turn), emotions, without=0)


def recommendation_samples(dialogues: Iterable[Dialogue], emotions: Emotions) -> list[Sample]:
    """Each film the recommender named, with the turns before."""
    samples = []
    for dialogue in dialogues:
        contexts: dict[int, Context] = {}
        for _, turn, item, is_repeat, liked in targets([dialogue]):
            if turn not in contexts:
                contexts[turn] = context_before(dialogue, turn, emotions)
            samples.append(Sample(contexts[turn], turn, item, is_repeat, liked))
    return samples


def entity_samples(dialogues: Iterable[Dialogue], emotions: Emotions) -> list[Sample]:
    """Each film of each dialogue, held out once: the turns that do not name it are the context."""
    samples = []
    for dialogue in dialogues:
        first: dict[int, int] = {}
        for number, turn in enumerate(dialogue.turns):
            for item in turn.items:
                first.setdefault(item, number)
        for item, number in first.items():
            others = [k for k, turn in enumerate(dialogue.turns) if item not in turn.items]
            context = _context(dialogue, number, others, emotions, without=item)
            samples.append(Sample(context, number, item, False, dialogue.liked.get(item, NOT_SAID)))
    return samples


def _context(
    dialogue: Dialogue, at: int, turns: Iterable[int], emotions: Emotions, without: int
) -> Context:
    """What these turns said, seen from one of them; ages count in both directions."""
    turns = list(turns)
    mentions, said = [], {}
    for number in turns:
        turn = dialogue.turns[number]
        age = abs(at - number)
        # What the recommender names is judged by the seeker's answer, if that is known yet.
        felt = number if turn.role == SEEKER else number + 1
        labels = tuple(emotions.get((dialogue.index, felt), ())) if felt in turns else ()
        mentions += [
            Mention(item, turn.role, age, labels) for item in turn.items if item != without
        ]
        for word in words(turn.text):
            said[word] = min(age, said.get(word, age))
    return Context(dialogue.index, tuple(mentions), said)
