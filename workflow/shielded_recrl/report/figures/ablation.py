"""The ablation: change of clicks and of NDCG@10 by variant.

In: rows of the table. Out: a figure.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from shielded_recrl.report.columns import Row
from shielded_recrl.report.figures.style import DOT, MARGIN, STYLE, Style, styles
from shielded_recrl.report.study import Cell, cells, title


def figure(rows: Sequence[Row], margin: float) -> Figure:
    """Change of clicks and of NDCG@10 by variant, a row of panels for each dataset.

    Bars are means over seeds, whiskers the hull of the seeds' 95% intervals, dots the seeds; the
    grey band is the margin within which NDCG@10 counts as unchanged.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells(rows):
        groups.setdefault(cell.dataset, []).append(cell)
    style = styles([row["variant"] for row in rows])
    heights = [len(group) for group in groups.values()]
    with mpl.rc_context(STYLE):
        drawn = Figure(
            figsize=(6.8, 0.9 + 0.3 * sum(heights) + 0.3 * len(groups)), layout="constrained"
        )
        panels = drawn.subplots(
            len(groups), 2, squeeze=False, sharex="col", sharey="row", height_ratios=heights
        )
        for (clicks, ndcg), group in zip(panels, groups.values(), strict=True):
            ndcg.axvspan(-margin, margin, color=MARGIN, zorder=0)
            _bars(clicks, group, "ctr_relative", style, unchanged=1.0)
            _bars(ndcg, group, "ndcg_change", style, unchanged=0.0)
            clicks.set_title(title(group[0].rows[0]), loc="left")
        panels[-1][0].set_xlabel("Change of simulated CTR")
        panels[-1][0].xaxis.set_major_formatter(lambda share, _: f"{100 * share:.6g}%")
        panels[-1][1].set_xlabel("Change of NDCG@10")
        panels[-1][1].xaxis.set_major_locator(MaxNLocator(5))
        handles = [
            Line2D([], [], **DOT, label="one seed"),
            Line2D([], [], color="black", linewidth=1.1, label="95% intervals of all seeds"),
            Patch(color=MARGIN, label=f"margin, ±{margin:g}"),
        ]
        drawn.legend(handles=handles, loc="outside lower center", ncols=3)
    return drawn


def _bars(
    axes: Axes,
    group: list[Cell],
    column: str,
    style: Style,
    unchanged: float,
) -> None:
    """Bars of a column's distance from the value that means no change."""
    order = [cell.variant for cell in group]
    seeds = pd.DataFrame(
        [(cell.variant, value - unchanged) for cell in group for value in cell.values(column)],
        columns=["variant", "value"],
    )
    sns.barplot(
        seeds,
        x="value",
        y="variant",
        hue="variant",
        order=order,
        palette={variant: colour for variant, (colour, _) in style.items()},
        errorbar=None,
        width=0.62,
        alpha=0.75,
        legend=False,
        ax=axes,
    )
    for place, cell in enumerate(group):
        if (ends := cell.interval(column)) is not None:
            low, high = ends
            axes.hlines(place, low - unchanged, high - unchanged, color="black", linewidth=1.1)
        values = [value - unchanged for value in cell.values(column)]
        axes.plot(values, [place] * len(values), **DOT)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="", ylabel="")
    axes.grid(visible=False, axis="y")
