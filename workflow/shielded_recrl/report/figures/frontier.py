"""The frontier: reward that training gained on explanations against what it moved in the ranking.

In: rows of the table. Out: a figure with a point for each variant, both axes on held-out users, and
where its adapter lies once it is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from shielded_recrl.report.columns import Row
from shielded_recrl.report.figures.style import GREY, STYLE, Style, styles
from shielded_recrl.report.study import UNSHIELDED, Cell, cells, title

# Without a shield, on the last block and on all blocks: the one that gained more is to compare with,
# of which one always-on adapter should reach so much.
COMPARATORS = (UNSHIELDED, "no_proj_all")
GOAL_GAIN = 0.9
GOAL_CHANGED = 0.05
GOAL_NDCG = 0.001
GOAL_COLOUR = "#DDEBD3"

SHARES = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)
CHANGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# Precisions of a merge that are drawn -> marker, None for the variant's own, and its size.
MERGES: dict[str, tuple[str | None, float]] = {"bf16": (None, 7.0), "nf4": ("o", 4.0)}
# Share of a panel's width on either side, so that markers at the ends are whole.
MARGIN = 0.05
# Points between two tick labels, at the least.
TICK_GAP = 4
LABEL = {
    "fontsize": 6.5,
    "ha": "center",
    "va": "center",
    "zorder": 6,
    "path_effects": [withStroke(linewidth=1.5, foreground="white", alpha=0.85)],
}
HOLLOW = {"linestyle": "", "markerfacecolor": "white", "markeredgewidth": 1.0, "zorder": 3}
# Where a label may stand: distances in points between a marker and the label's box, and directions.
DISTANCES = np.array([5, 9, 14, 20, 28, 38, 50, 64])
ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
DIRECTIONS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


class Point(NamedTuple):
    """A variant in one panel: its seeds, and the hulls of their intervals, None where not drawn."""

    variant: str
    drifts: list[float]
    gains: list[float]
    drift_hull: tuple[float, float] | None
    gain_hull: tuple[float, float] | None

    @property
    def mean(self) -> tuple[float, float]:
        """Mean drift and mean gain over seeds."""
        return fmean(self.drifts), fmean(self.gains)

    @property
    def seeds(self) -> list[tuple[float, float]]:
        """Drift and gain of each seed."""
        return list(zip(self.drifts, self.gains, strict=True))


def point(cell: Cell, column: str) -> Point:
    """Drift, as an absolute value, and reward gained; exact variants have no interval of drift."""
    exact = all(row["certificate_heldout"] == "exact" for row in cell.rows)
    hull = cell.interval(column)
    return Point(
        cell.variant,
        [abs(value) for value in cell.values(column)],
        cell.values("heldout_reward_gain"),
        None if exact or hull is None else magnitude(*hull),
        cell.interval("heldout_reward_gain"),
    )


def merges(cell: Cell) -> dict[str, float]:
    """Precision -> share of users whose top 10 changed, mean over seeds; without what was not merged."""
    same = {precision: cell.mean(f"merged_{precision}_top10_identical") for precision in MERGES}
    return {precision: 1 - share for precision, share in same.items() if share is not None}


def magnitude(low: float, high: float) -> tuple[float, float]:
    """Interval of the absolute value of what lies in an interval.

    >>> magnitude(-0.3, 0.1), magnitude(-0.3, -0.1)
    ((0.0, 0.3), (0.1, 0.3))
    """
    ends = sorted((abs(low), abs(high)))
    return (0.0 if low <= 0 <= high else ends[0], ends[1])


def goal(group: Sequence[Cell]) -> float | None:
    """Reward gain to reach: 90% of the larger mean of unshielded variants; None if none gained."""
    means = [c.mean("heldout_reward_gain") for c in group if c.variant in COMPARATORS]
    gain = max((mean for mean in means if mean is not None), default=0.0)
    return GOAL_GAIN * gain if gain > 0 else None


def figure(rows: Sequence[Row]) -> Figure:
    """Draw the frontier, a column of panels for each dataset.

    On top, drift is the share of users whose top 10 changed, at the bottom the |change of NDCG@10|;
    both on a square-root scale, which gives small drift room and holds 0. Markers are means over
    seeds, dots the seeds, whiskers the hull of the seeds' intervals. Shaded is the goal. Between
    them, where anything was merged, stands the top row's drift after a merge.
    """
    groups = [list(group) for _, group in groupby(cells(rows), lambda cell: cell.dataset)]
    style = styles([row["variant"] for row in rows])
    changed, ndcg = (
        [[point(cell, column) for cell in group] for group in groups]
        for column in ("drift_heldout_top10_changed", "ndcg_change")
    )
    merged = [[merges(cell) for cell in group] for group in groups]
    measured = [precision for precision in MERGES if any(precision in m for g in merged for m in g)]
    widest = 1.05 * max(GOAL_NDCG, *(end for points in ndcg for p in points for end in _drifts(p)))
    with mpl.rc_context(STYLE):
        lines = 3 if measured else 2
        size = (max(5.8, 0.4 + 3.6 * len(groups)), 1.2 + 2.8 * lines)
        drawn = Figure(figsize=size, layout="constrained")
        panels = drawn.subplots(lines, len(groups), squeeze=False, sharey="col")
        for axes, group in zip(panels[0], groups, strict=True):
            axes.set_title(title(group[0].rows[0]).replace(" (", "\n("))
        for axes, points, group in zip(panels[0], changed, groups, strict=True):
            axes.set_xlabel("Held-out users whose top 10 changed")
            _panel(axes, points, style, goal(group), GOAL_CHANGED)
            root_scale(axes, 1.0, SHARES, lambda share, _: f"{100 * share:g}%")
        for axes, points, group in zip(panels[-1], ndcg, groups, strict=True):
            axes.set_xlabel("|Change of NDCG@10|, held-out users")
            axes.axvline(GOAL_NDCG, color="black", linestyle="--", linewidth=0.8, zorder=1)
            _panel(axes, points, style, goal(group), GOAL_NDCG)
            root_scale(axes, widest, CHANGES, lambda change, _: f"{change:g}")
        if measured:
            for axes, *own in zip(panels[1], changed, merged, groups, strict=True):
                axes.set_xlabel("Top 10 changed once merged, held-out users")
                _merged_panel(axes, *own[:2], style, goal(own[2]))
                root_scale(axes, 1.0, SHARES, lambda share, _: f"{100 * share:g}%")
        for axes in panels[:, 0]:
            axes.set_ylabel("Reward gained, held-out users")
        reached = any(goal(group) is not None for group in groups)
        handles = _handles(measured, reached)
        drawn.legend(handles=handles, loc="outside lower center", ncols=2)
        # Lays the panels out, for good: where a name finds room hangs on places on the page.
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")
        for axes in drawn.axes:
            _thin_ticks(axes)
        for row, drifts in ((panels[0], changed), (panels[-1], ndcg)):
            for axes, points in zip(row, drifts, strict=True):
                _label(axes, points, [seed for p in points for seed in p.seeds], style)
        if measured:
            for axes, points, shares in zip(panels[1], changed, merged, strict=True):
                _label(axes, points, _merged_places(points, shares), style)
    return drawn


def _panel(
    axes: Axes, points: Sequence[Point], style: Style, reach: float | None, drift: float
) -> None:
    """Points with seeds and whiskers; the goal lies above `reach` and left of `drift`."""
    _field(axes, points, reach, drift)
    for one in points:
        colour, marker = style[one.variant]
        x, y = one.mean
        whisker = {"color": colour, "linewidth": 0.8, "alpha": 0.45, "zorder": 2}
        if one.drift_hull is not None:
            axes.hlines(y, *one.drift_hull, **whisker)
        if one.gain_hull is not None:
            axes.vlines(x, *one.gain_hull, **whisker)
        axes.plot(
            *(one.drifts, one.gains),
            **{"marker": "o", "linestyle": "", "markersize": 2.6, "markeredgewidth": 0},
            color=colour,
            alpha=0.8,
            zorder=3,
        )
        axes.plot(
            *(x, y),
            **{"marker": marker, "markersize": 7, "markeredgewidth": 0.7},
            color=colour,
            markeredgecolor="white",
            zorder=5,
        )


def _merged_panel(
    axes: Axes,
    points: Sequence[Point],
    shares: Sequence[dict[str, float]],
    style: Style,
    reach: float | None,
) -> None:
    """Small markers as they are above, and hollow ones where merging moves them, on one line each."""
    _field(axes, points, reach, GOAL_CHANGED)
    for one, moved in zip(points, shares, strict=True):
        colour, own = style[one.variant]
        x, y = one.mean
        ends = [x, *moved.values()]
        axes.hlines(y, min(ends), max(ends), color=colour, linewidth=0.8, alpha=0.45, zorder=2)
        axes.plot(x, y, marker=own, markersize=3.5, markeredgewidth=0, color=colour, zorder=4)
        for precision, share in moved.items():
            marker, size = MERGES[precision]
            axes.plot(share, y, **HOLLOW, marker=marker or own, markersize=size, color=colour)


def _merged_places(
    points: Sequence[Point], shares: Sequence[dict[str, float]]
) -> list[tuple[float, float]]:
    """Where the hollow markers stand."""
    return [
        (share, one.mean[1])
        for one, moved in zip(points, shares, strict=True)
        for share in moved.values()
    ]


def _field(axes: Axes, points: Sequence[Point], reach: float | None, drift: float) -> None:
    """The panel's height, and the goal above `reach` and left of `drift`."""
    ends = [end for p in points for end in (*p.gains, *(p.gain_hull or ()))]
    room = 0.08 * (max(ends) - min(ends) or 1.0)
    axes.set_ylim(min(ends) - room, max(ends) + room)
    # By default their number hangs on the font size in force, after the layout is fixed, too.
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.axhline(0, color="black", linewidth=0.8, zorder=1)
    if reach is not None:
        # Far beyond the panel, which cuts it.
        axes.add_patch(Rectangle((-1, reach), 1 + drift, 1e6, color=GOAL_COLOUR, zorder=0))


def root_scale(
    axes: Axes, widest: float, ticks: Sequence[float], form: Callable[[float, int], str]
) -> None:
    """A square-root scale from 0 to `widest`, with a margin left of 0 and one to the right."""
    axes.set_xscale("function", functions=(_root, _square))
    axes.set_xlim(-(MARGIN**2) * widest, (1 + MARGIN) ** 2 * widest)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= widest]))
    axes.xaxis.set_major_formatter(FuncFormatter(form))
    axes.xaxis.set_minor_locator(NullLocator())


def _thin_ticks(axes: Axes) -> None:
    """Leave out every tick whose label comes too near to the last one left of it."""
    near = TICK_GAP * axes.figure.dpi / 72
    kept, end = [], -np.inf
    for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
        box = label.get_window_extent()
        if box.x0 >= end + near:
            kept.append(place)
            end = box.x1
    axes.xaxis.set_major_locator(FixedLocator(kept))


def _root(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.square(values)


def _drifts(one: Point) -> list[float]:
    return [*one.drifts, *(one.drift_hull or ())]


def _handles(measured: Sequence[str], shaded: bool) -> list[Line2D | Patch]:
    mark = {"color": GREY, "linestyle": ""}
    handles: list[Line2D | Patch] = [
        Line2D([], [], **mark, marker="D", markersize=5, label="mean over seeds"),
        Line2D([], [], **mark, marker="o", markersize=2.6, label="one seed"),
        Line2D([], [], color=GREY, linewidth=0.8, label="95% intervals of all seeds"),
        Line2D(
            *([], []),
            **{"color": "black", "linestyle": "--", "linewidth": 0.8},
            label=f"|change of NDCG@10| = {GOAL_NDCG:g}",
        ),
    ]
    for precision in measured:
        marker, size = MERGES[precision]
        label = f"merged into {precision} (reward: unmerged)"
        handles.append(
            Line2D(
                *([], []),
                **{**HOLLOW, "color": GREY, "marker": marker or "D"},
                markersize=size - (marker is None),
                label=label,
            )
        )
    if shaded:
        text = (
            f"goal: {GOAL_GAIN:.0%} of the reward gain or more of\n"
            f"{' or '.join(COMPARATORS)}, whichever is larger,\n"
            f"at most {GOAL_CHANGED:.0%} of users and {GOAL_NDCG:g} of\nNDCG@10 changed"
        )
        handles.append(Patch(color=GOAL_COLOUR, label=text))
    return handles


def _label(
    axes: Axes, points: Sequence[Point], marks: Sequence[tuple[float, float]], style: Style
) -> None:
    """Name every point where the name covers least, of other marks, too; a thin line leads to it."""
    unit = axes.figure.dpi / 72
    inside = axes.get_window_extent().padded(-2 * unit)
    places = axes.transData.transform([one.mean for one in points])
    small = axes.transData.transform(np.reshape(marks, (-1, 2)))
    taken = np.concatenate([_boxes(places, 9 * unit), _boxes(small, 3 * unit)])
    names = np.empty((0, 4))
    gaps = np.hypot(*np.moveaxis(places[:, None] - places, -1, 0))
    # Crowded points choose first: they have the fewest places to choose from.
    for index in np.argsort(np.sort(gaps, axis=1)[:, :4].sum(axis=1), kind="stable"):
        dark = tuple(0.6 * part for part in to_rgb(style[points[index].variant][0]))
        text = axes.annotate(
            points[index].variant,
            points[index].mean,
            xytext=(0, 0),
            textcoords="offset points",
            color=dark,
            arrowprops={"arrowstyle": "-", "color": dark, "linewidth": 0.5, "shrinkB": 2},
            **LABEL,
        )
        text.set_in_layout(False)
        size = text.get_window_extent().size
        shifts = (DIRECTIONS * (DISTANCES[:, None, None] * unit + size / 2)).reshape(-1, 2)
        others = np.delete(taken, index, axis=0)
        cost = _costs(places[index], shifts, size, others, names, inside)
        shift = shifts[np.argmin(cost + np.hypot(*shifts.T) / (40 * unit))]
        text.set_position(tuple(shift / unit))
        names = np.concatenate([names, _boxes(places[index] + shift[None], size)])


def _costs(
    place: np.ndarray,
    shifts: np.ndarray,
    size: np.ndarray,
    taken: np.ndarray,
    names: np.ndarray,
    inside: Bbox,
) -> np.ndarray:
    """For each shift [s, 2] of a label, what it covers and what its line crosses; [s].

    Labels out of the panel are worst, then those on other names. Boxes are rows of left, bottom,
    right and top.
    """
    boxes = _boxes(place + shifts, size)
    out = (boxes[:, :2] < inside.min).any(axis=1) | (boxes[:, 2:] > inside.max).any(axis=1)
    covered = _overlap(boxes, taken).sum(axis=1)
    hidden = _overlap(boxes, names).sum(axis=1)
    along = [_boxes(place + part * shifts, 1) for part in np.linspace(0.3, 0.9, 7)]
    everything = np.concatenate([taken, names])
    crossed = np.any([_overlap(step, everything) for step in along], axis=0).sum(axis=1)
    return 100 * out + 25 * hidden + 3 * covered + 2 * crossed


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether boxes [a, 4] and [b, 4] overlap; [a, b]."""
    one, other = first[:, None], second[None]
    return ((one[..., :2] < other[..., 2:]) & (other[..., :2] < one[..., 2:])).all(axis=-1)


def _boxes(middles: np.ndarray, size: np.ndarray | float) -> np.ndarray:
    """Boxes [n, 4] around their middles [n, 2]."""
    return np.concatenate([middles - np.divide(size, 2), middles + np.divide(size, 2)], axis=1)
