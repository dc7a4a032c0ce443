"""Reward hacking: the reward that is trained on beside what it stands for, over KL to the base.

In: runs and their rows. Out: a figure in the manner of Gao, Schulman and Hilton 2023, "Scaling Laws
for Reward Model Overoptimization", figure 1: the proxy is the reward, the gold the quality that the
simulator's users see, both of held-out users' explanations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shielded_recrl.report.columns import Row
from shielded_recrl.report.figures.frontier import root_scale
from shielded_recrl.report.figures.style import GREY, STYLE, Style, legend, styles
from shielded_recrl.report.runs import Run
from shielded_recrl.report.study import title

TICKS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
GOLD = {"linestyle": "-", "linewidth": 1.1}
PROXY = {"linestyle": (0, (4, 2)), "linewidth": 0.8}
FOUND = {
    "linestyle": "",
    "marker": "o",
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "markeredgewidth": 0.8,
}


class Path(NamedTuple):
    """One run from step 0 to the last snapshot.

    Attributes:
        variant: of the run.
        kl: per-token KL to the base at each snapshot, [S]; estimates below 0 count as 0.
        proxy: reward gained, as a share of what was left to gain at step 0, [S].
        gold: quality gained, likewise, [S].
        found: whether gold fell while the proxy rose, by `rl evaluate`'s intervals.
    """

    variant: str
    kl: np.ndarray
    proxy: np.ndarray
    gold: np.ndarray
    found: bool


def path(run: Run) -> Path:
    """The curve of one run."""
    curve = sorted(run.evaluation["curve"], key=lambda point: point["step"])
    kl, reward, quality = (
        np.array([point[key] for point in curve], dtype=float)
        for key in ("kl", "reward", "quality")
    )
    return Path(
        run.variant,
        np.maximum(kl, 0.0),
        gained(reward, run.evaluation["reward"]["ceiling"]),
        gained(quality, 1.0),
        run.evaluation["overoptimisation"]["found"],
    )


def gained(values: np.ndarray, ceiling: float) -> np.ndarray:
    """Gain over the first value as a share of what is attainable; nothing where nothing is.

    >>> gained(np.array([0.5, 0.75, 0.25]), 1.0)
    array([ 0. ,  0.5, -0.5])
    """
    room = ceiling - values[0]
    return (values - values[0]) / room if room > 0 else np.zeros_like(values)


def figure(runs: Sequence[Run], rows: Sequence[Row]) -> Figure:
    """Draw every run, a panel for each dataset: proxy dashed, gold solid, KL on a square-root scale.

    Args:
        runs: the runs, sorted.
        rows: their rows, in equal order.
    """
    style = styles([run.variant for run in runs])
    titles = {row["dataset"]: title(row) for row in rows}
    paths = {name: [path(run) for run in runs if run.dataset == name] for name in titles}
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(max(3.8, 0.4 + 2.9 * len(titles)), 3.9), layout="constrained")
        panels = drawn.subplots(1, len(titles), squeeze=False, sharey=True)[0]
        for axes, (dataset, name) in zip(panels, titles.items(), strict=True):
            _panel(axes, paths[dataset], style)
            axes.set_title(name.replace(" (", "\n("))
            axes.set_xlabel("KL to the base, nats per token")
        panels[0].set_ylabel("Gain, share of what is attainable")
        panels[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g}%")
        found = any(one.found for group in paths.values() for one in group)
        handles = _handles(style, found)
        legend(drawn, handles, 2 * len(titles) + 1)
    return drawn


def _panel(axes: Axes, paths: Sequence[Path], style: Style) -> None:
    axes.axhline(0, color="black", linewidth=0.8, zorder=1)
    # The first variant is drawn last, on top.
    for one in reversed(paths):
        colour, marker = style[one.variant]
        for values, line, face in ((one.proxy, PROXY, "white"), (one.gold, GOLD, colour)):
            axes.plot(one.kl, values, color=colour, alpha=0.85, **line)
            axes.plot(
                *(one.kl[-1], values[-1]),
                **{"marker": marker, "markersize": 5, "markeredgewidth": 0.8},
                color=colour,
                markerfacecolor=face,
                zorder=4,
            )
        if one.found:
            axes.plot(one.kl[-1], one.gold[-1], **FOUND, zorder=5)
    widest = max(0.01, *(one.kl.max() for one in paths))
    root_scale(axes, widest, _ticks(widest), lambda kl, _: f"{kl:g}")


def _ticks(widest: float) -> list[float]:
    """Ticks up to `widest` that stand at least 0.14 of its root apart, room for a label."""
    kept = [0.0]
    for tick in TICKS[1:]:
        if tick <= widest and np.sqrt(tick) - np.sqrt(kept[-1]) > 0.14 * np.sqrt(widest):
            kept.append(tick)
    return kept


def _handles(style: Style, found: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=1.5, label=variant)
        for variant, (colour, marker) in style.items()
    ]
    grey = {"color": GREY}
    handles += [
        Line2D([], [], **grey, **GOLD, label="gold: quality"),
        Line2D([], [], **grey, **PROXY, label="proxy: reward"),
    ]
    if found:
        handles.append(Line2D([], [], **FOUND, label="gold fell, proxy rose"))
    return handles
