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
from shielded_recrl.report.figures.style import STYLE, Style, styles
from shielded_recrl.report.runs import Run
from shielded_recrl.report.study import title

GREY = "#4D4D4D"


def quality_weight(runs: Sequence[Run], rows: Sequence[Row]) -> Figure:
    """Relative CTR over the weight of quality: a row of panels a simulator, a column a dataset.

    Lines are means over seeds, bands the hull of the seeds' 95% intervals.

    Args:
        runs: the runs, sorted.
        rows: their rows, in equal order.
    """
    with mpl.rc_context(STYLE):
        drawn, panels, style = _grid(runs, rows)
        for (dataset, simulator), axes in panels.items():
            axes.axhline(1, color="black", linewidth=0.8)
            # The first variant is drawn last, on top.
            for variant in reversed(style):
                chosen = [
                    _points(run, simulator)
                    for run in runs
                    if (run.dataset, run.variant) == (dataset, variant)
                ]
                if chosen:
                    _band(axes, np.array(chosen), style[variant])
            axes.set_xlabel("weight of quality")
            axes.set_ylabel("CTR after / before")
        drawn.legend(handles=_handles(style), loc="outside lower center", ncols=6)
    return drawn


def calibration(runs: Sequence[Run], rows: Sequence[Row]) -> Figure:
    """Reliability: click rate in the simulator over the P(click) foretold, after training.

    Grey is the simulator's own probability, the noise of sessions; a colour the click model of the
    reward, of each variant. A dot is a bin of one run, its area the share of its sessions; the
    numbers are expected calibration errors, means over runs.

    Args:
        runs: the runs, sorted.
        rows: their rows, in equal order.
    """
    with mpl.rc_context(STYLE):
        drawn, panels, style = _grid(runs, rows)
        for (dataset, simulator), axes in panels.items():
            axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=(0, (4, 2)))
            errors: dict[str, list[float]] = {}
            for run in reversed([run for run in runs if run.dataset == dataset]):
                found = run.evaluation["calibration"][simulator]
                colour, marker = style[run.variant]
                _bins(axes, found["own"]["after"], GREY, ".")
                _bins(axes, found["reward"]["after"], colour, marker)
                for name, source in (("own", "own"), (run.variant, "reward")):
                    errors.setdefault(name, []).append(found[source]["after"]["ece"])
            lines = [f"{name} {np.mean(values):.3f}" for name, values in reversed(errors.items())]
            axes.text(0.03, 0.97, "\n".join(["ECE", *lines]), transform=axes.transAxes, **SMALL)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="P(click), foretold", ylabel="click rate")
        own = Line2D([], [], color=GREY, marker=".", linestyle="", label="simulator's own")
        drawn.legend(handles=[own, *_handles(style, line="")], loc="outside lower center", ncols=6)
    return drawn


SMALL: dict[str, Any] = {"fontsize": 6, "va": "top", "linespacing": 1.3}


def _grid(
    runs: Sequence[Run], rows: Sequence[Row]
) -> tuple[Figure, dict[tuple[str, str], Axes], Style]:
    """A panel for each dataset (column) and simulator (row)."""
    titles = {row["dataset"]: title(row) for row in rows}
    simulators = list(runs[0].evaluation["simulators"])
    drawn = Figure(
        figsize=(max(3.6, 0.4 + 2.3 * len(titles)), 0.8 + 2.1 * len(simulators)),
        layout="constrained",
    )
    axes = drawn.subplots(len(simulators), len(titles), squeeze=False, sharex=True, sharey="row")
    panels = {
        (dataset, simulator): axes[place][column]
        for place, simulator in enumerate(simulators)
        for column, dataset in enumerate(titles)
    }
    for (dataset, simulator), one in panels.items():
        first = simulator == simulators[0]
        name = titles[dataset].replace(" (", "\n(") if first else ""
        one.set_title(f"{name}\n{simulator}" if first else simulator)
    return drawn, panels, styles([run.variant for run in runs])


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


def _band(axes: Axes, points: np.ndarray, style: tuple[str, Any]) -> None:
    """Mean over seeds of points [S, W, 4], and the hull of their intervals."""
    colour, marker = style
    weights, means = points[0, :, 0], points[:, :, 1].mean(axis=0)
    low, high = points[:, :, 2].min(axis=0), points[:, :, 3].max(axis=0)
    axes.fill_between(weights, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(weights, means, color=colour, marker=marker, markersize=4, linewidth=1.4)


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
