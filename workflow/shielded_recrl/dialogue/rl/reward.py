"""The reward of a response: what the frozen critic thinks of it, and that it can be used at all.

    total = critic + format + support - repetition - copying, each times its weight

    critic       the overall head of the trained critic, which is frozen and checked
    format       share of four rules kept: slots are whole; the text ends on a mark or a film; it is
                 one turn, without names of speakers and lines of the prompt; it has words beside
                 films, and not too many
    support      share of the films it names that stand in a slot that a recommended film fills; a
                 title written out is none; 1 where it names none, since whether films are wanted is
                 for the critic to say
    repetition   share of pairs of words that came before in the response
    copying      share of words that stand four in a row in one of the turns before

In: responses in slot form and their `ResponseRequest`s. Out: components in [0, 1] and the sum. An
empty response has 0 in all of them. The last four read no model: they hold whatever the critic can be
talked into.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shielded_recrl.dialogue.corpus.dialogues import (
    RECOMMENDER,
    SEEKER,
    SLOT,
    Dialogues,
    Turn,
)
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.response.metrics import slots_as_words
from shielded_recrl.dialogue.response.prompts import ResponseRequest
from shielded_recrl.dialogue.settings import DialogueRewardSettings
from shielded_recrl.explainer.prompts import Item
from shielded_recrl.rl.rewards.base import Composite
from shielded_recrl.rl.rewards.reading import ClaimIndex
from shielded_recrl.rl.text import distinct_share, ngrams, words, written_as_names

# What begins another turn, as prompts and as the critic's context have it, or a line of the prompt.
SPEAKER = re.compile(rf"\b(?:{SEEKER}|{RECOMMENDER})\s*:", re.IGNORECASE)
LINES = ("Feels:", "Movies:")
LAST = re.compile(rf"(?:[.!?…)\"'”’]|{re.escape(SLOT)})$")
YEAR = re.compile(r"\((?:19|20)\d\d\)")
COPIED = 4


class Scorer(Protocol):
    """What gives scores [n, 5] to responses: `critique.model.Critic`."""

    def __call__(self, contexts: Sequence[Sequence[Turn]], responses: Sequence[str]) -> Tensor: ...


def dialogue_reward(
    critic: Scorer, dialogues: Dialogues, settings: DialogueRewardSettings
) -> Composite:
    """The reward of a response; its context is a `ResponseRequest`.

    Args:
        critic: frozen.
        dialogues: whose films are known by title.
        settings: weights and lengths.
    """
    weights = {name: getattr(settings, name) for name in ("critic", "format", "support")}
    weights |= {name: -getattr(settings, name) for name in ("repetition", "copying")}
    return Composite([Overall(critic), Form(dialogues, settings)], weights)


class Overall:
    """`critic`: the overall head. A `Reward`."""

    def __init__(self, critic: Scorer):
        """
        Args:
            critic: frozen.
        """
        self.critic = critic

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[ResponseRequest]
    ) -> dict[str, Tensor]:
        """One component, float32 [n]; 0 for an empty response.

        Raises:
            UserError: the critic is no longer as it was frozen.
        """
        scores = self.critic([request.context for request in context], responses)
        overall = scores[:, HEADS.index("overall")].clone()
        return {"critic": overall * torch.tensor([float(bool(text.strip())) for text in responses])}


class Form:
    """`format`, `support`, `repetition`, `copying`. A `Reward`."""

    def __init__(self, dialogues: Dialogues, settings: DialogueRewardSettings):
        """
        Args:
            dialogues: whose films are known by title.
            settings: lengths.
        """
        titles = dialogues.items["title"].to_list()
        self.index = ClaimIndex([Item(title, (), "") for title in titles])
        self.least, self.most = settings.min_words, settings.max_words

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], context: Sequence[ResponseRequest]
    ) -> dict[str, Tensor]:
        """Four components, each float32 [n]."""
        rows = [
            (
                form(text, self.least, self.most),
                support(text, len(request.recommended), self.index),
                repetition(text),
                copying(text, request.context),
            )
            if text.strip()
            else (0.0,) * 4
            for text, request in zip(responses, context, strict=True)
        ]
        values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4).T.contiguous()
        return dict(zip(("format", "support", "repetition", "copying"), values, strict=True))


def form(text: str, least: int, most: int) -> float:
    """Share of the rules of `format` that a text keeps.

    >>> form("Have you seen <movie>?", 2, 60), form("<movie> <movi", 2, 60)
    (1.0, 0.25)
    """
    spoken = text.replace(SLOT, " ")
    kept = (
        not set("<>") & set(spoken),
        LAST.search(text.rstrip()) is not None,
        one_turn(text),
        least <= len(words(spoken)) <= most,
    )
    return sum(kept) / len(kept)


def one_turn(text: str) -> bool:
    """Whether a text is one line that names no speaker and begins no line of the prompt.

    >>> one_turn("These movies: <movie> and <movie>."), one_turn("Try it! seeker: thanks!")
    (True, False)
    """
    return (
        len(text.splitlines()) <= 1
        and SPEAKER.search(text) is None
        and not any(line in text for line in LINES)
    )


def support(text: str, recommended: int, index: ClaimIndex) -> float:
    """Share of the films named that a recommended one stands for.

    Args:
        text: a response in slot form.
        recommended: number of recommended films.
        index: titles of all films.
    """
    slots = text.count(SLOT)
    named = slots + written_titles(text, index)
    return min(slots, recommended) / named if named else 1.0


def written_titles(text: str, index: ClaimIndex) -> int:
    """Titles that are written out. Of several words one has a capital that is no sentence's."""
    # A slot is a word, so that no title spans it.
    plain = slots_as_words(text)
    as_names = written_as_names(plain)
    found = sum(any(as_names[start:end]) for start, end in index.find(words(plain), as_names))
    return max(found, len(YEAR.findall(plain)))


def repetition(text: str) -> float:
    """Share of pairs of words, a film being one, that came before.

    >>> repetition("so good so good so good")
    0.6
    """
    return round(1 - distinct_share(words(slots_as_words(text)), 2), 6)


def copying(text: str, context: Sequence[Turn]) -> float:
    """Share of words that stand four in a row in a turn before.

    >>> copying("You like films of the sea, yes", [Turn("seeker", "I like films of the sea", ())])
    0.714286
    """
    said = words(slots_as_words(text))
    known = {gram for turn in context for gram in ngrams(words(slots_as_words(turn.text)), COPIED)}
    copied = [False] * len(said)
    for start, gram in enumerate(ngrams(said, COPIED)):
        if gram in known:
            copied[start : start + COPIED] = [True] * COPIED
    return round(sum(copied) / len(copied), 6) if copied else 0.0
