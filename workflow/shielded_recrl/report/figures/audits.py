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

from shielded_recrl.report.figures.style import STYLE, Style, legend, styles

FORBIDDEN = "#F6D5D5"
BROKEN = "#A01818"
COLUMNS = 4


def figure(summary: Mapping[str, Any]) -> Figure:
    """Figure of each run with its interval, the side of the bound that breaks the line in red.

    Hollow markers are broken lines: also those of too few samples, whatever the figure.

    Args:
        summary: audit.json of `audit summarise`.
    """
    lines, runs = summary["policy"]["lines"], summary["runs"]
    style = styles([run["variant"] for run in runs])
    rows = list(dict.fromkeys((run["dataset"], run["variant"]) for run in runs))
    height = -(-len(lines) // COLUMNS)
    with mpl.rc_context(STYLE):
        drawn = Figure(
            figsize=(7.2, 0.4 + height * (0.85 + 0.19 * len(rows))), layout="constrained"
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
        seed = {"color": "black", "marker": "o", "markersize": 3.5, "markeredgewidth": 0.8}
        handles = [
            Line2D([], [], **seed, label="one seed, 95% interval"),
            Line2D([], [], **seed, markerfacecolor="white", label="line broken"),
            Patch(color=FORBIDDEN, label="side that breaks it"),
        ]
        legend(drawn, handles, 3)
    return drawn


def _panel(
    axes: Axes,
    line: Mapping[str, Any],
    runs: list[dict[str, Any]],
    rows: list[tuple[str, str]],
    style: Style,
) -> None:
    missing: dict[int, list[bool | None]] = {}
    for place, row in enumerate(rows):
        verdicts = [
            run["verdicts"][line["name"]] for run in runs if (run["dataset"], run["variant"]) == row
        ]
        colour, marker = style[row[1]]
        for number, verdict in enumerate(verdicts):
            # Seeds side by side, so that equal ones stay apart.
            height = place + min(0.22, 0.8 / len(verdicts)) * (number - (len(verdicts) - 1) / 2)
            if verdict["value"] is None:
                missing.setdefault(place, []).append(verdict["holds"])
                continue
            axes.hlines(height, verdict["low"], verdict["high"], color=colour, linewidth=1.1)
            axes.plot(
                *(verdict["value"], height),
                **{"marker": marker, "markersize": 3.5, "markeredgewidth": 0.8, "color": colour},
                markerfacecolor="white" if verdict["holds"] is False else colour,
            )
    bound = line["bound"]
    bounds = (-bound, bound) if line["absolute"] else (bound,)
    for place, found in missing.items():
        # No figure is no verdict only where the data have none; elsewhere it breaks the line.
        broken = False in found
        axes.text(
            *(0.5, place, "not shown" if broken else "not evaluable"),
            **{"fontsize": 6, "va": "center", "ha": "center", "zorder": 3},
            color=BROKEN if broken else "black",
            transform=axes.get_yaxis_transform(),
        )
    # Without a figure the axis would run from 0 to 1, whatever the bound.
    low, high = axes.get_xlim() if axes.lines else (0.0, bound or 1.0)
    room = 0.08 * (max(high, *bounds) - min(low, *bounds))
    low, high = min(low, *bounds) - room, max(high, *bounds) + room
    if line["direction"] == "above":
        axes.axvspan(low, bound, color=FORBIDDEN, zorder=0)
    else:
        axes.axvspan(bound, high, color=FORBIDDEN, zorder=0)
        if line["absolute"]:
            axes.axvspan(low, -bound, color=FORBIDDEN, zorder=0)
    axes.set_xlim(low, high)
    axes.set_title(f"{line['name'].replace('_', ' ')}\n{_condition(line)}", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.grid(visible=False, axis="y")


def _condition(line: Mapping[str, Any]) -> str:
    """What the worse end of the interval has to keep.

    >>> _condition({"bound": 0.02, "direction": "below", "absolute": True})
    'within ±0.02'
    """
    if line["absolute"]:
        return f"within ±{line['bound']:g}"
    return f"{'<' if line['direction'] == 'below' else '>'} {line['bound']:g}"
