"""Explanations against references, beside the two controls that say what a score is worth.

In: runs and their rows. Out: a figure of ROUGE-L, a panel for each dataset with references.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shielded_recrl.report.columns import Row
from shielded_recrl.report.figures.style import STYLE, Style, styles
from shielded_recrl.report.runs import Run
from shielded_recrl.report.study import title

# What is drawn of each run: key, label, marker face, and the place beside the middle of its row.
SCORES = (
    ("texts", "own references", "full", 0.0),
    ("shuffled", "references of other items (control)", "none", 0.16),
    ("constant", "best constant sentence (control)", "x", -0.16),
)
MARKS = {"full": "o", "none": "o", "x": "x"}


def figure(runs: Sequence[Run], rows: Sequence[Row]) -> Figure:
    """ROUGE-L before and after training of every run, beside its controls after training.

    Args:
        runs: the runs, sorted.
        rows: their rows, in equal order.
    """
    style = styles([run.variant for run in runs])
    titles = {row["dataset"]: title(row) for row in rows}
    groups = {name: [run for run in runs if run.dataset == name] for name in titles}
    with mpl.rc_context(STYLE):
        drawn = Figure(
            figsize=(max(4.0, 0.6 + 2.4 * len(titles)), 1.3 + 0.2 * max(map(len, groups.values()))),
            layout="constrained",
        )
        panels = drawn.subplots(1, len(titles), squeeze=False)[0]
        for axes, (dataset, group) in zip(panels, groups.items(), strict=True):
            axes.set_title(titles[dataset].replace(" (", "\n("))
            _panel(axes, group, style)
        drawn.legend(handles=_handles(), loc="outside lower center", ncols=2)
    return drawn


def _panel(axes: Axes, runs: Sequence[Run], style: Style) -> None:
    scored = [run for run in runs if run.evaluation["texts"]["after"].get("rouge_l") is not None]
    if not scored:
        reason = runs[0].evaluation["texts"].get("reason") or "no references"
        axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, fontsize=7)
        axes.set_axis_off()
        return
    for place, run in enumerate(scored):
        before, after = (run.evaluation["texts"][when] for when in ("before", "after"))
        colour, _ = style[run.variant]
        axes.annotate(
            "",
            (after["rouge_l"], place),
            (before["rouge_l"], place),
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.1},
        )
        for key, _, face, shift in SCORES:
            score = after["rouge_l"] if key == "texts" else after[key]["rouge_l"]
            axes.plot(score, place + shift, **_mark(face, colour))
    axes.set_yticks(range(len(scored)), [f"{run.variant}, {run.seed}" for run in scored])
    axes.set_ylim(len(scored) - 0.5, -0.5)
    axes.set_xlabel("ROUGE-L F, percent")
    axes.grid(visible=False, axis="y")


def _mark(face: str, colour: str) -> dict[str, Any]:
    return {
        "marker": MARKS[face],
        "markersize": 4,
        "color": colour,
        "linestyle": "",
        "markerfacecolor": "none" if face == "none" else colour,
    }


def _handles() -> list[Line2D]:
    grey = "#4D4D4D"
    return [
        Line2D([], [], color=grey, marker=r"$\rightarrow$", linestyle="", label="before to after"),
        *(Line2D([], [], label=label, **_mark(face, grey)) for _, label, face, _ in SCORES),
    ]
