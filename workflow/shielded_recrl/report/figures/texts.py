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
from shielded_recrl.report.figures.style import GREY, STYLE, Style, legend, styles
from shielded_recrl.report.runs import Run
from shielded_recrl.report.study import title

# Width of a panel in inches, by whether it has scores.
WIDTH = {True: 3.2, False: 2.25}
# Controls after training: label, marker, and the place beside the middle of a run's row.
CONTROLS = {
    "shuffled": ("references of other items (control)", "o", 0.27),
    "constant": ("best constant sentence (control)", "x", -0.27),
}


def figure(runs: Sequence[Run], rows: Sequence[Row]) -> Figure:
    """ROUGE-L before and after training of every run, beside its controls after training.

    The line beside the control of other items' references is the 95% interval of what the paired
    texts score above it.

    Args:
        runs: the runs, sorted.
        rows: their rows, in equal order.
    """
    style = styles([run.variant for run in runs])
    titles = {row["dataset"]: title(row) for row in rows}
    groups = {name: [run for run in runs if run.dataset == name] for name in titles}
    widths = [WIDTH[bool(_scored(group))] for group in groups.values()]
    with mpl.rc_context(STYLE):
        drawn = Figure(
            figsize=(
                max(4.0, 0.6 + sum(widths)),
                0.95 + 0.26 * max(map(len, groups.values())),
            ),
            layout="constrained",
        )
        panels = drawn.subplots(1, len(titles), squeeze=False, width_ratios=widths)[0]
        for axes, (dataset, group) in zip(panels, groups.items(), strict=True):
            axes.set_title(titles[dataset].replace(" (", "\n("))
            _panel(axes, group, style)
        if any(map(_scored, groups.values())):
            legend(drawn, _handles(), 2)
    return drawn


def _scored(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.evaluation["texts"]["after"].get("rouge_l") is not None]


def _panel(axes: Axes, runs: Sequence[Run], style: Style) -> None:
    scored = _scored(runs)
    if not scored:
        reason = runs[0].evaluation["texts"].get("reason") or "no references"
        axes.text(0.5, 0.5, reason, ha="center", va="center", transform=axes.transAxes, fontsize=7)
        axes.set_axis_off()
        return
    for place, run in enumerate(scored):
        before, after = (run.evaluation["texts"][when] for when in ("before", "after"))
        colour, marker = style[run.variant]
        axes.annotate(
            "",
            (after["rouge_l"], place),
            (before["rouge_l"], place),
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.1},
        )
        # An arrow alone does not widen the axis: its tail may lie outside.
        axes.plot(before["rouge_l"], place, **_mark("|", colour, size=7))
        axes.plot(after["rouge_l"], place, **_mark(marker, colour))
        if (above := after["rouge_l_minus_shuffled"]) is not None:
            ends = (after["shuffled"]["rouge_l"] + above[end] for end in ("low", "high"))
            axes.hlines(place + CONTROLS["shuffled"][2], *ends, color=colour, linewidth=1.1)
        for key, (_, control, shift) in CONTROLS.items():
            axes.plot(after[key]["rouge_l"], place + shift, **_mark(control, colour, hollow=True))
    axes.set_yticks(range(len(scored)), [f"{run.variant}, {run.seed}" for run in scored])
    axes.set_ylim(len(scored) - 0.5, -0.5)
    axes.set_xlabel("ROUGE-L F, percent")
    axes.grid(visible=False, axis="y")


def _mark(marker: Any, colour: str, hollow: bool = False, size: float = 4.5) -> dict[str, Any]:
    return {
        "marker": marker,
        "markersize": size,
        "color": colour,
        "linestyle": "",
        "markerfacecolor": "none" if hollow else colour,
    }


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], label="before training", **_mark("|", GREY, size=7)),
        Line2D([], [], label="after training", **_mark("D", GREY)),
        *(
            Line2D([], [], label=label, **_mark(marker, GREY, hollow=True))
            for label, marker, _ in CONTROLS.values()
        ),
        Line2D([], [], color=GREY, linewidth=1.1, label="95% interval above the former control"),
    ]
