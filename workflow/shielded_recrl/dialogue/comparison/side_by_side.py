"""Dialogues with what each system would have said, side by side.

In: rows of responses.jsonl. Out: text for a terminal, or Markdown. They are the first ones by number
of the dialogue, so that nobody chose them. Each turn is answered after what was truly said before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from shielded_recrl import markdown
from shielded_recrl.dialogue.comparison.contestants import BEST, GOLD, RL, SUPERVISED
from shielded_recrl.dialogue.comparison.text import label
from shielded_recrl.errors import UserError
from shielded_recrl.explain.render import plain
from shielded_recrl.files import read_jsonl

COLUMNS = (GOLD, SUPERVISED, BEST, RL)
SCORES = ("critic", "unseen")
KEYS = {"dialogue", "turn", "context", "emotions", "recommended", "responses"}

Row = Mapping[str, Any]


def load_responses(run: Path) -> list[Row]:
    """Read responses.jsonl of a run.

    Raises:
        UserError: it is missing or damaged, or not of this kind.
    """
    path = run / "responses.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run `python -m shielded_recrl.dialogue evaluate`")
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not row.keys() >= KEYS:
            raise UserError(f"{path}, line {number}: no answered turn; run evaluate again")
    return rows


def first_dialogues(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """Answered turns of the first dialogues by number, in their order."""
    ordered = sorted(rows, key=lambda row: (row["dialogue"], row["turn"]))
    groups = [list(group) for _, group in groupby(ordered, key=lambda row: row["dialogue"])]
    return groups[:count]


def as_text(dialogues: Sequence[Sequence[Row]], samples: int) -> Iterator[str]:
    """Lines for a terminal; what is no printable character is not printed."""
    width = max(len(label(name, samples)) for name in COLUMNS)
    for turns in dialogues:
        yield f"Dialogue {turns[0]['dialogue']}"
        for row, before in _with_news(turns):
            yield from (f"  {turn['role']}: {plain(turn['text'])}" for turn in before)
            yield f"  [{plain(_about(row))}]"
            for name in COLUMNS:
                one = row["responses"][name]
                said = plain(one["filled"]) or "(nothing)"
                yield f"    {label(name, samples):>{width}}: {said}  ({_scores(one)})"
        yield ""


def as_markdown(dialogues: Sequence[Sequence[Row]], samples: int) -> list[str]:
    """Lines of a page, data escaped."""
    lines = []
    for turns in dialogues:
        lines += [f"### Dialogue {turns[0]['dialogue']}", ""]
        for row, before in _with_news(turns):
            for turn in before:
                lines += [f"**{turn['role']}:** {markdown.in_cell(turn['text'])}", ""]
            lines += [markdown.in_cell(_about(row)), ""]
            both = [row["responses"][name] for name in COLUMNS]
            lines += markdown.table(
                [label(name, samples) for name in COLUMNS],
                [
                    [markdown.in_cell(one["filled"]) or "(nothing)" for one in both],
                    [_scores(one) for one in both],
                ],
            )
            lines.append("")
    return lines


def _with_news(turns: Sequence[Row]) -> Iterator[tuple[Row, list[Mapping[str, str]]]]:
    """Each answered turn with the turns since the one before, whose answer is shown already."""
    shown = 0
    for row in turns:
        yield row, row["context"][shown:]
        shown = len(row["context"]) + 1


def _about(row: Row) -> str:
    feels = ", ".join(row["emotions"]) or "none"
    return f"feels: {feels}; recommended: {'; '.join(row['recommended'][:3]) or 'none'}"


def _scores(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{judge} {one['overall'][judge]:.2f}" for judge in SCORES)
