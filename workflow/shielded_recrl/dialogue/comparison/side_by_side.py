"""Dialogues with what each system would have said, side by side.

In: rows of responses.jsonl, of one run or of several. Out: text for a terminal, or Markdown. Dialogues
are drawn by a seed, so that nobody chose them; the extremes by a judge are named as such. Each turn is
answered after what was truly said before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shielded_recrl import markdown
from shielded_recrl.dialogue.comparison.contestants import BEST, GOLD, RL, SUPERVISED
from shielded_recrl.dialogue.comparison.runs import Row
from shielded_recrl.dialogue.comparison.text import NONE, label
from shielded_recrl.explain.render import plain

COLUMNS = (SUPERVISED, BEST, RL)
TITLES = 3
NOTHING = "(nothing)"


class Turn(NamedTuple):
    """A turn that was answered.

    Attributes:
        dialogue: its number.
        turn: its number in the dialogue.
        rows: seed of the training -> its row of responses.jsonl.
    """

    dialogue: int
    turn: int
    rows: dict[int, Row]

    @property
    def said(self) -> Row:
        """What is the same in all rows: context, emotions, recommended films, the person's response."""
        return next(iter(self.rows.values()))


def answered(responses: Mapping[int, Sequence[Row]]) -> list[Turn]:
    """Turns in the order of dialogues, each with the rows of all trainings.

    Args:
        responses: seed -> rows of responses.jsonl.
    """
    found: dict[tuple[int, int], dict[int, Row]] = {}
    for seed, rows in responses.items():
        for row in rows:
            found.setdefault((row["dialogue"], row["turn"]), {})[seed] = row
    return [Turn(*place, found[place]) for place in sorted(found)]


def drawn_dialogues(turns: Sequence[Turn], count: int, seed: int) -> list[list[Turn]]:
    """Answered turns of so many dialogues drawn by a seed, in the order of their numbers."""
    dialogues = sorted({turn.dialogue for turn in turns})
    rng = np.random.default_rng(seed)
    kept = sorted(rng.choice(dialogues, size=min(count, len(dialogues)), replace=False).tolist())
    return [[turn for turn in turns if turn.dialogue == dialogue] for dialogue in kept]


class Extreme(NamedTuple):
    """An answer of RL beside one of the supervised LM.

    Attributes:
        turn: with the row of one training alone.
        seed: of that training.
        gain: of RL over supervised, by a judge.
    """

    turn: Turn
    seed: int
    gain: float


def extremes(turns: Sequence[Turn], judge: str, count: int) -> tuple[list[Extreme], list[Extreme]]:
    """Answers that gained and lost most by a judge, RL less supervised, the furthest first.

    Of equal ones the first dialogue comes first; what the judge did not score is left out, and so is
    a gain that is none.
    """
    found = []
    for turn in turns:
        for seed, row in turn.rows.items():
            one, other = (row["responses"][name]["overall"][judge] for name in (RL, SUPERVISED))
            if one is not None and other is not None:
                found.append(Extreme(turn._replace(rows={seed: row}), seed, one - other))
    ordered = sorted(found, key=lambda one: one.gain)
    gained = sorted(found, key=lambda one: -one.gain)
    return (
        [one for one in gained[:count] if one.gain > 0],
        [one for one in ordered[:count] if one.gain < 0],
    )


def as_text(dialogues: Sequence[Sequence[Turn]], samples: int) -> Iterator[str]:
    """Lines for a terminal; what is no printable character is not printed."""
    names = {name: label(name, samples) for name in (GOLD, *COLUMNS)}
    width = max(map(len, names.values()))
    for turns in dialogues:
        yield f"Dialogue {turns[0].dialogue}"
        for turn, before in _with_news(turns):
            yield from (f"  {line['role']}: {plain(line['text'])}" for line in before)
            yield f"  [feels: {plain(_feels(turn))}; recommended: {plain(_films(turn))}]"
            for row in turn.rows.values():
                for name, shown in names.items():
                    one = row["responses"][name]
                    said = plain(one["filled"]) or NOTHING
                    yield f"    {shown:>{width}}: {said}  ({_scores(one)})"
        yield ""


def as_markdown(dialogues: Sequence[Sequence[Turn]], samples: int) -> list[str]:
    """Lines of a page, data escaped."""
    lines = []
    for turns in dialogues:
        lines += [f"### Dialogue {turns[0].dialogue}", ""]
        for turn, before in _with_news(turns):
            lines += [*_context(before), *_answers(turn, samples)]
    return lines


def extreme_as_markdown(extreme: Extreme, samples: int, title: str) -> list[str]:
    """Lines about one answer, after the two turns before it; data escaped."""
    turn = extreme.turn
    return [
        f"### {title}: {extreme.gain:+.2f}, dialogue {turn.dialogue}, turn {turn.turn}",
        "",
        *_context(turn.said["context"][-2:]),
        *_answers(turn, samples),
    ]


def _context(before: Sequence[Mapping[str, str]]) -> list[str]:
    return [
        line
        for turn in before
        for line in (f"**{turn['role']}:** {markdown.in_cell(turn['text'])}", "")
    ]


def _answers(turn: Turn, samples: int) -> list[str]:
    """What the seeker feels, the films, the person's response, and a table with the systems'."""
    rows = (
        [f"seed {seed}", *(_answer(row["responses"][name]) for name in COLUMNS)]
        for seed, row in turn.rows.items()
    )
    return [
        f"*feels:* {markdown.in_cell(_feels(turn))}; *recommended:* {markdown.in_cell(_films(turn))}",
        "",
        f"**{label(GOLD, samples)}:** {_answer(turn.said['responses'][GOLD])}",
        "",
        *markdown.table(["training", *(label(name, samples) for name in COLUMNS)], rows),
        "",
    ]


def _answer(one: Mapping[str, Any]) -> str:
    return f"{markdown.in_cell(one['filled']) or NOTHING} *({_scores(one)})*"


def _with_news(turns: Sequence[Turn]) -> Iterator[tuple[Turn, list[Mapping[str, str]]]]:
    """Each answered turn with the turns since the one before, whose answer is shown already."""
    shown = 0
    for turn in turns:
        context = turn.said["context"]
        yield turn, context[shown:]
        shown = len(context) + 1


def _feels(turn: Turn) -> str:
    return ", ".join(turn.said["emotions"]) or "none"


def _films(turn: Turn) -> str:
    return "; ".join(turn.said["recommended"][:TITLES]) or "none"


def _scores(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{judge} {_number(score)}" for judge, score in one["overall"].items())


def _number(score: float | None) -> str:
    return NONE if score is None else f"{score:.2f}"
