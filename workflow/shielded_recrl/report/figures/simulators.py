"""What the simulated lift hangs on: the simulator, and how much its users care for texts.

In: runs and their rows. Out: a figure of the relative click-through rate over the weight of quality
in each simulator, and one of the calibration of click probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shielded_recrl.report.columns import Row
from shielded_recrl.report.figures.style import GREY, STYLE, Style, legend, styles
from shielded_recrl.report.runs import Run
from shielded_recrl.report.study import title

# Share of the least distance of two weights that the variants at one of them take.
ROOM = 0.6
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
SMALL: dict[str, Any] = {"fontsize": 6.5, "va": "top", "linespacing": 1.3}


def quality_weight(runs: Sequence[Run], rows: Sequence[Row]) -> Figure:
    """Relative CTR over the weight of quality: a row of panels a simulator, a column a dataset.

    Lines are means over seeds, whiskers the hull of the seeds' 95% intervals. Variants stand side by
    side at each weight, so that no whisker lies on another.

    Args:
        runs: the runs, sorted.
        rows: their rows, in equal order.
    """
    with mpl.rc_context(STYLE):
        drawn, panels, style = _grid(runs, rows)
        for (dataset, simulator), axes in panels.items():
            axes.axhline(1, color="black", linewidth=0.8)
            seeds = {variant: [] for variant in style}
            for run in runs:
                if run.dataset == dataset:
                    seeds[run.variant].append(_points(run, simulator))
            there = [variant for variant in style if seeds[variant]]
            # The first variant is drawn last, on top.
            for place, variant in reversed(list(enumerate(there))):
                aside = (place - (len(there) - 1) / 2) / len(there)
                _whiskers(axes, np.array(seeds[variant]), style[variant], aside)
        _name(panels, "Weight of quality", "CTR after / before")
        legend(drawn, _handles(style), 6)
    return drawn


def calibration(runs: Sequence[Run], rows: Sequence[Row]) -> Figure:
    """Reliability: click rate in the simulator over the P(click) foretold, after training.

    Grey is the simulator's own probability, the noise of sessions; a colour the click model of the
    reward, of each variant. A dot is a bin of one run, its area the share of its sessions; the
    numbers are expected calibration errors, the smallest and the largest of all runs.

    Args:
        runs: the runs, sorted.
        rows: their rows, in equal order.
    """
    with mpl.rc_context(STYLE):
        drawn, panels, style = _grid(runs, rows)
        for (dataset, simulator), axes in panels.items():
            axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=(0, (4, 2)))
            errors: dict[str, list[float]] = {"reward": [], "own": []}
            for run in reversed([run for run in runs if run.dataset == dataset]):
                found = run.evaluation["calibration"][simulator]
                colour, marker = style[run.variant]
                _bins(axes, found["own"]["after"], GREY, "o")
                _bins(axes, found["reward"]["after"], colour, marker)
                for source, values in errors.items():
                    values.append(found[source]["after"]["ece"])
            lines = [f"ECE, {source} {_range(values)}" for source, values in errors.items()]
            axes.text(0.04, 0.96, "\n".join(lines), transform=axes.transAxes, **SMALL)
            axes.set(xlim=(0, 1), ylim=(0, 1), xticks=TICKS, yticks=TICKS)
            axes.set_xticklabels([f"{tick:g}" for tick in TICKS])
            axes.set_yticklabels([f"{tick:g}" for tick in TICKS])
        _name(panels, "P(click), foretold", "Click rate")
        own = Line2D(
            [], [], color=GREY, marker="o", markersize=4, linestyle="", label="simulator's own"
        )
        legend(drawn, [own, *_handles(style, line="")], 6)
    return drawn


def _grid(
    runs: Sequence[Run], rows: Sequence[Row]
) -> tuple[Figure, dict[tuple[str, str], Axes], Style]:
    """A panel for each dataset (column) and simulator (row)."""
    titles = {row["dataset"]: title(row) for row in rows}
    simulators = list(runs[0].evaluation["simulators"])
    drawn = Figure(
        figsize=(max(3.6, 0.4 + 2.3 * len(titles)), 0.6 + 2.0 * len(simulators)),
        layout="constrained",
    )
    axes = drawn.subplots(len(simulators), len(titles), squeeze=False, sharex=True, sharey="row")
    panels = {
        (dataset, simulator): axes[place][column]
        for place, simulator in enumerate(simulators)
        for column, dataset in enumerate(titles)
    }
    for (dataset, simulator), one in panels.items():
        if simulator == simulators[0]:
            one.set_title(titles[dataset].replace(" (", "\n("))
    return drawn, panels, styles([run.variant for run in runs])


def _name(panels: dict[tuple[str, str], Axes], x: str, y: str) -> None:
    """Labels at the outer axes alone, with the simulator of each row."""
    (left, _), (_, last) = next(iter(panels)), list(panels)[-1]
    for (dataset, simulator), axes in panels.items():
        axes.set_xlabel(x if simulator == last else "")
        axes.set_ylabel(f"{y},\nsimulator {simulator}" if dataset == left else "")


def _range(values: Sequence[float]) -> str:
    """Smallest and largest value; one number where they read alike.

    >>> _range([0.0571, 0.0624]), _range([0.0041, 0.0042])
    ('0.057 to 0.062', '0.004')
    """
    ends = dict.fromkeys(f"{end:.3f}" for end in (min(values), max(values)))
    return " to ".join(ends)


def _points(run: Run, simulator: str) -> list[list[float]]:
    """Weight, relative CTR and the ends of its interval, [W, 4]; undefined ones are nan."""
    return [
        [
            np.nan if row[key] is None else row[key]
            for key in ("weight", "relative", "relative_low", "relative_high")
        ]
        for row in run.evaluation["quality_weight_sweep"]
        if row["simulator"] == simulator
    ]


def _whiskers(axes: Axes, points: np.ndarray, style: tuple[str, Any], aside: float) -> None:
    """Mean over seeds of points [S, W, 4], and the hull of their intervals.

    They stand `aside` of their weight, in shares of a part of the least distance of two weights.
    """
    colour, marker = style
    weights, means = points[0, :, 0], points[:, :, 1].mean(axis=0)
    low, high = points[:, :, 2].min(axis=0), points[:, :, 3].max(axis=0)
    gaps = np.diff(np.unique(weights))
    places = weights + ROOM * aside * (gaps.min() if gaps.size else 1.0)
    axes.vlines(places, low, high, color=colour, linewidth=0.9, alpha=0.7)
    axes.plot(places, means, color=colour, marker=marker, markersize=3.5, linewidth=1.0)


def _bins(axes: Axes, report: dict[str, Any], colour: str, marker: Any) -> None:
    total = sum(one["count"] for one in report["bins"])
    axes.scatter(
        [one["predicted"] for one in report["bins"]],
        [one["observed"] for one in report["bins"]],
        s=[4 + 60 * one["count"] / total for one in report["bins"]],
        color=colour,
        marker=marker,
        alpha=0.55,
        linewidth=0,
    )


def _handles(style: Style, line: str = "-") -> list[Line2D]:
    return [
        Line2D([], [], color=colour, marker=marker, markersize=4, linestyle=line, label=variant)
        for variant, (colour, marker) in style.items()
    ]
