"""Prompts of the response LM: what was said, the seeker's emotions, what is recommended.

In: prepared dialogues, the emotions of their turns, the recommender's films, a tokenizer. Out: token
ids of

    Seeker: I loved Heat (1995)! Any more like it?          the last turns, the oldest give way
    Feels: happy, curious                                   emotions of the seeker's last turn
    Movies: Ronin (1998); Collateral (2004)                 recommended, best first
    Recommender:                                            here the response begins

A response is in slot form: its k-th `<movie>` stands for the k-th recommended title, which `fill`
puts there. So the LM decides how films are spoken of, and the recommender alone which.

In turns and titles no token of a chat template can be spelled, and no line can be begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from shielded_recrl.dialogue.corpus.dialogues import (
    RECOMMENDATIONS,
    RECOMMENDER,
    SEEKER,
    SLOT,
    Dialogues,
    Turn,
)
from shielded_recrl.dialogue.emotion.turns import load_emotions
from shielded_recrl.dialogue.settings import ResponsePromptSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.prompts import MARKS, shortened
from shielded_recrl.parquet import read_parquet

NAMES = {SEEKER: "Seeker:", RECOMMENDER: "Recommender:"}
ANSWER = NAMES[RECOMMENDER]
# Stand for no emotion and no film.
NEUTRAL, NOTHING = "neutral", "none"
# Lines are encoded once; a turn stands in the prompts of several others.
CACHED_LINES = 100_000


class ResponseRequest(NamedTuple):
    """One response to be written.

    Attributes:
        dialogue: number of the dialogue.
        turn: number of the recommender's turn in it, never the first.
        context: all turns before.
        emotions: of the seeker's last turn, strongest first.
        recommended: titles, best first; the k-th slot of the response stands for the k-th.
        gold: what the recommender said, in slot form.
    """

    dialogue: int
    turn: int
    context: tuple[Turn, ...]
    emotions: tuple[str, ...]
    recommended: tuple[str, ...]
    gold: str


class ResponsePrompts:
    """Turns requests into token ids."""

    def __init__(
        self,
        dialogues: Dialogues,
        emotions: Mapping[tuple[int, int], Sequence[tuple[str, float]]],
        recommended: Mapping[tuple[int, int], Sequence[int]],
        tokenizer,
        settings: ResponsePromptSettings,
    ):
        """
        Args:
            dialogues: all dialogues.
            emotions: (dialogue, turn) -> label and probability, strongest first.
            recommended: (dialogue, turn) -> films, best first.
            tokenizer: a transformers tokenizer.
            settings: lengths.
        """
        self.dialogues, self.emotions, self.recommended = dialogues, emotions, recommended
        self.tokenizer, self.settings = tokenizer, settings
        self._encode = lru_cache(CACHED_LINES)(self._encoded)

    @classmethod
    def load(
        cls,
        data: Path,
        emotion: Path,
        recommendations: Path,
        base: Path,
        settings: ResponsePromptSettings,
    ) -> Self:
        """Read everything that prompts are made of.

        Args:
            data: folder of the prepared dialogues.
            emotion: turns.parquet of `annotate`.
            recommendations: recommendations.parquet of `recommend`.
            base: folder of the base LM.
            settings: lengths.

        Raises:
            UserError: a file is missing or damaged, or the base has no tokenizer.
        """
        from shielded_recrl.explainer.base import load_tokenizer

        dialogues = Dialogues.load(data)
        return cls(
            dialogues,
            load_emotions(emotion),
            load_recommendations(recommendations, dialogues),
            load_tokenizer(base),
            settings,
        )

    def requests(self, split: str) -> list[ResponseRequest]:
        """Every turn of a recommender in a split that has a turn before it."""
        return [
            self.request(dialogue.index, dialogue.turns, turn)
            for dialogue in self.dialogues.split(split)
            for turn in range(1, len(dialogue.turns))
            if dialogue.turns[turn].role == RECOMMENDER and dialogue.turns[turn].text
        ]

    def request(self, dialogue: int, turns: Sequence[Turn], turn: int) -> ResponseRequest:
        """The request for one turn of a recommender.

        Raises:
            UserError: the recommender was not asked for it.
        """
        if (films := self.recommended.get((dialogue, turn))) is None:
            raise UserError(
                f"recommendations: no row of dialogue {dialogue}, turn {turn}; run "
                "`python -m shielded_recrl.dialogue recommend` on the same prepared dialogues"
            )
        spoken = [place for place in range(turn) if turns[place].role == SEEKER]
        feels = self.emotions.get((dialogue, spoken[-1]), ()) if spoken else ()
        return ResponseRequest(
            dialogue,
            turn,
            tuple(turns[:turn]),
            tuple(label for label, _ in feels),
            tuple(self.dialogues.title(item) for item in films),
            slot_form(turns[turn].text),
        )

    def ids(self, request: ResponseRequest) -> list[int]:
        """Token ids of a prompt, `prompt_tokens` at the most."""
        feels = f"Feels: {', '.join(request.emotions) or NEUTRAL}\n"
        for named in range(min(self.settings.titles, len(request.recommended)), -1, -1):
            titles = "; ".join(map(shortened, request.recommended[:named]))
            tail = self._encode(f"{feels}Movies: {titles or NOTHING}\n{ANSWER}")
            # Titles leave half of the room to what was said.
            if len(tail) <= self.settings.prompt_tokens // 2:
                break
        return self._joined(request.context, tail)

    def plain_ids(self, context: Sequence[Turn]) -> list[int]:
        """Token ids of the prompt that has the turns alone."""
        return self._joined(context, self._encode(ANSWER))

    def response_ids(self, text: str) -> list[int]:
        """Token ids of a response in slot form, end-of-text included, as it follows a prompt."""
        return [*self._encode(f" {text}"), self.tokenizer.eos_token_id]

    def _joined(self, context: Sequence[Turn], tail: Sequence[int]) -> list[int]:
        begin = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        room = self.settings.prompt_tokens - len(begin) - len(tail)
        lines: list[int] = []
        for turn in reversed(context[-self.settings.context_turns :]):
            name, text = self._encode(NAMES[turn.role]), self._encode(f" {self.said(turn)}\n")
            left = room - len(lines) - len(name)
            if left <= 0 or (lines and len(text) > left):
                break
            # Of a last turn that is too long, its end stays.
            lines = [*name, *text[-left:], *lines]
        return [*begin, *lines, *tail][-self.settings.prompt_tokens :]

    def said(self, turn: Turn) -> str:
        """A turn as prompts have it: on one line, with its titles."""
        titles = [shortened(self.dialogues.title(item)) for item in turn.items]
        return fill(slot_form(turn.text), titles)

    def _encoded(self, text: str) -> tuple[int, ...]:
        # Special tokens inside data are text like any other.
        return tuple(
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )


def spread(requests: Sequence[ResponseRequest], most: int) -> list[ResponseRequest]:
    """At most so many requests, evenly over all."""
    if len(requests) <= most:
        return list(requests)
    return [requests[place * len(requests) // most] for place in range(most)]


def load_recommendations(
    path: Path, dialogues: Dialogues
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Films recommended in each turn, best first.

    Raises:
        UserError: the file is missing or damaged, or names a film that is not in the catalogue.
    """
    table = read_parquet(
        path, RECOMMENDATIONS, made_by="python -m shielded_recrl.dialogue recommend"
    ).sort("dialogue", "turn", "position")
    if table.height and not table["item"].is_between(1, dialogues.n_items).all():
        raise UserError(
            f"{path}: names films outside 1..{dialogues.n_items}; run "
            "`python -m shielded_recrl.dialogue recommend` on the same prepared dialogues"
        )
    grouped = table.group_by("dialogue", "turn", maintain_order=True).agg("item")
    return {(dialogue, turn): tuple(items) for dialogue, turn, items in grouped.iter_rows()}


def names_again(turns: Sequence[Turn], turn: int) -> bool:
    """Whether a turn names a film that was named before, be it in the turn itself.

    What is recommended is new, so a response in slot form cannot say it: its slot would stand for
    another film.
    """
    before = {item for earlier in turns[:turn] for item in earlier.items}
    mine = turns[turn].items
    return len(set(mine)) < len(mine) or not before.isdisjoint(mine)


def slot_form(text: str) -> str:
    """A turn on one line in which only slots look like tokens of a template.

    >>> slot_form("See <movie>!</s>\\nRecommender: <b>")
    'See <movie>!(/s) Recommender: (b)'
    """
    return " ".join(SLOT.join(part.translate(MARKS) for part in text.split(SLOT)).split())


def fill(text: str, titles: Sequence[str]) -> str:
    """Put titles in the place of slots, in order; slots beyond the last title stay.

    >>> fill("<movie>, or <movie>?", ["Heat (1995)", "Ronin (1998)", "Drive (2011)"])
    'Heat (1995), or Ronin (1998)?'
    """
    first, *rest = text.split(SLOT)
    given = [*titles[: len(rest)], *[SLOT] * (len(rest) - len(titles))]
    return first + "".join(title + part for title, part in zip(given, rest, strict=True))
