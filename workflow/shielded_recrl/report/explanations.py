"""Explanations before and after training, side by side, as they are.

In: finished runs. Out: a Markdown page with the first explanations of the variants `VARIANTS` on
each dataset, of their smallest seeds: users of the slate by number, their items by position.
Nothing is selected by what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from shielded_recrl.files import read_jsonl
from shielded_recrl.markdown import in_cell, table
from shielded_recrl.report.runs import Run
from shielded_recrl.report.study import SHIELDED, UNSHIELDED

SHOWN = 10
# With the shield and without; the first variant of the study where it has neither.
VARIANTS = (SHIELDED, UNSHIELDED)


def page(runs: Sequence[Run]) -> str:
    """The Markdown page.

    Args:
        runs: sorted by dataset, then variant, then seed.
    """
    names = " and ".join(f"`{name}`" for name in VARIANTS)
    parts = [
        "# Explanations\n\n"
        f"The first {SHOWN} explanations of {names} on each dataset, before and after training, "
        "unselected: smallest seed, held-out users of the slate by number, their items by "
        "position. Quality is the evaluation simulator's, from 0 to 1.\n"
    ]
    for _, group in groupby(runs, key=lambda run: run.dataset):
        parts += map(_section, shown(list(group)))
    return "\n".join(parts)


def shown(runs: Sequence[Run]) -> list[Run]:
    """The runs of one dataset to show: one for each of `VARIANTS`, or the first run of all."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.variant, run)
    return [first[name] for name in VARIANTS if name in first] or [runs[0]]


def item(title: str, categories: Sequence[str]) -> str:
    """An item as people write it.

    >>> item("Portal", ["Action", "Puzzle"]), item("Ricochet", [])
    ('Portal (Action, Puzzle)', 'Ricochet')
    """
    return f"{title} ({', '.join(categories)})" if categories else title


def _section(run: Run) -> str:
    texts = read_jsonl(run.folder / "explanations.jsonl")
    last = max(row["step"] for row in texts)
    before, after = (list(_first(texts, step)) for step in (0, last))
    kind = "synthetic data, " if run.stats["synthetic"] else ""
    rows = [
        [
            in_cell("; ".join(old["history"])),
            in_cell(item(old["title"], old["categories"])),
            in_cell(old["text"]),
            f"{old['quality']:.2f}",
            in_cell(new["text"]),
            f"{new['quality']:.2f}",
        ]
        for old, new in zip(before, after, strict=True)
    ]
    lines = [
        f"## {run.dataset} ({kind}variant `{run.variant}`, seed {run.seed}, {last} steps)\n",
        *table(["history", "recommended", "before", "quality", "after", "quality"], rows),
        "",
    ]
    return "\n".join(lines)


def _first(rows: Iterable[dict[str, Any]], step: int) -> Iterable[dict[str, Any]]:
    return [row for row in rows if row["step"] == step][:SHOWN]
