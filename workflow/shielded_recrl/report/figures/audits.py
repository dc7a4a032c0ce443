"""The audits against the policy.

In: the summary of `audit summarise`. Out: a figure with a panel for each line of the policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from shielded_recrl.report.figures.style import STYLE, Style, styles

FORBIDDEN = "#F6D5D5"
COLUMNS = 4


def figure(summary: Mapping[str, Any]) -> Figure:
    """Figure of each run with its interval, the side of the bound that breaks the line in red.

    Args:
        summary: audit.json of `audit summarise`.
    """
    lines, runs = summary["policy"]["lines"], summary["runs"]
    style = styles([run["variant"] for run in runs])
    rows = list(dict.fromkeys((run["dataset"], run["variant"]) for run in runs))
    height = -(-len(lines) // COLUMNS)
    with mpl.rc_context(STYLE):
        drawn = Figure(
            figsize=(7.2, 0.7 + height * (0.75 + 0.19 * len(rows))), layout="constrained"
        )
        panels = drawn.subplots(height, COLUMNS, squeeze=False, sharey=True).ravel()
        for axes, line in zip(panels, lines.values(), strict=False):
            _panel(axes, line, runs, rows, style)
        for axes in panels[len(lines) :]:
            axes.set_axis_off()
        for place in range(0, len(panels), COLUMNS):
            panels[place].set_yticks(
                range(len(rows)), [f"{dataset}, {variant}" for dataset, variant in rows]
            )
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        handles = [
            Line2D([], [], color="black", marker="o", markersize=3, label="one seed, 95% interval"),
            Patch(color=FORBIDDEN, label="breaks the line"),
        ]
        drawn.legend(handles=handles, loc="outside lower center", ncols=2)
    return drawn


def _panel(
    axes: Axes,
    line: Mapping[str, Any],
    runs: list[dict[str, Any]],
    rows: list[tuple[str, str]],
    style: Style,
) -> None:
    for place, row in enumerate(rows):
        verdicts = [
            run["verdicts"][line["name"]] for run in runs if (run["dataset"], run["variant"]) == row
        ]
        colour, marker = style[row[1]]
        for number, verdict in enumerate(verdicts):
            if verdict["value"] is None:
                axes.text(0.5, place, "not evaluable", fontsize=5.5, va="center", ha="center",
                          transform=axes.get_yaxis_transform())  # fmt: skip
                break
            # Seeds side by side, so that equal ones stay apart.
            height = place + 0.22 * (number - (len(verdicts) - 1) / 2)
            axes.hlines(height, verdict["low"], verdict["high"], color=colour, linewidth=1.1)
            axes.plot(verdict["value"], height, color=colour, marker=marker, markersize=3)
    bound = line["bound"]
    bounds = (-bound, bound) if line["absolute"] else (bound,)
    low, high = axes.get_xlim()
    room = 0.08 * (max(high, *bounds) - min(low, *bounds))
    low, high = min(low, *bounds) - room, max(high, *bounds) + room
    if line["direction"] == "above":
        axes.axvspan(low, bound, color=FORBIDDEN, zorder=0)
    else:
        axes.axvspan(bound, high, color=FORBIDDEN, zorder=0)
        if line["absolute"]:
            axes.axvspan(low, -bound, color=FORBIDDEN, zorder=0)
    axes.set_xlim(low, high)
    axes.set_title(line["name"].replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.grid(visible=False, axis="y")
