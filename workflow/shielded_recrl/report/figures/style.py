"""Figures: learning curves of clicks and ranking quality, and the ablation.

In: runs and their rows. Out: PNG and PDF files whose bytes depend on the numbers alone. A variant
has the same colour and marker in every figure and every study. The first colours are those of Wong
2011; the next were chosen one by one to be furthest, in CIELAB, from those before under normal,
protan, deutan and tritan vision (Machado et al. 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from shielded_recrl.files import atomic
from shielded_recrl.report.columns import Row
from shielded_recrl.report.runs import Run
from shielded_recrl.report.study import Cell, cells, title

STYLE = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper"),
    "font.family": "DejaVu Sans",
    "pdf.fonttype": 42,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
}
DPI = 200
KNOWN = (
    *("shielded", "no_proj", "separate", "kl0", "lora4", "long_expl", "random", "no_penalty"),
    *("tight", "ranker", "activated", "weighted", "loose", "penalty_only", "all_blocks"),
    *("no_proj_all", "length_only"),
)
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#331122", "#8800FF"),
    *("#001177", "#772211", "#AACC77", "#773366", "#BB55FF", "#EE0055", "#5544BB", "#666644"),
    "#331155",
    # For the first name that is not known.
    "#00B8A9",
)
# As many as there are known names; a tuple is a star of so many points.
MARKERS = (
    *("o", "s", "^", "D", "v", "<", ">", "p", "*", "X", "P", "h", "d"),
    (4, 1, 0),
    (3, 1, 0),
    (6, 1, 0),
    (8, 1, 0),
)
Marker = str | tuple[int, int, int]
Style = dict[str, tuple[str, Marker]]
MARGIN = "0.88"
DOT = {
    "color": "black",
    "linestyle": "",
    "marker": "o",
    "markersize": 4,
    "markerfacecolor": "white",
    "markeredgewidth": 0.7,
    "zorder": 4,
}
# What timestamps and versions a format would write by itself.
METADATA = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def styles(variants: Sequence[str]) -> Style:
    """Colour and marker by variant: known names have their own, others the rest, by the alphabet.

    No two of the first 306 variants are alike, as the numbers of colours and markers are coprime.
    """
    others = sorted(set(variants) - set(KNOWN))
    places = {name: place for place, name in enumerate([*KNOWN, *others])}
    return {
        name: (COLOURS[places[name] % len(COLOURS)], MARKERS[places[name] % len(MARKERS)])
        for name in dict.fromkeys(variants)
    }


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and PDF beside each other; the path has no suffix."""
    for kind, metadata in METADATA.items():
        with atomic(path.with_name(f"{path.name}.{kind}")) as partial:
            figure.savefig(partial, format=kind, dpi=DPI, metadata=metadata)


def over_steps(
    runs: Sequence[Run], rows: Sequence[Row], key: str, label: str, least_span: float = 0.0
) -> Figure:
    """Learning curves, a panel for each dataset: thin seeds, thick mean, band of one standard error.

    Args:
        runs: the runs, sorted.
        rows: their rows, in equal order.
        key: of the curve in evaluation.json; `ndcg@10` also shows SASRec alone.
        label: of the y axis.
        least_span: smallest height of the y axis, so that noise does not fill a panel.
    """
    style = styles([run.variant for run in runs])
    points = pd.DataFrame(
        {
            "dataset": run.dataset,
            "variant": run.variant,
            "seed": run.seed,
            "step": point["step"],
            "value": point[key],
        }
        for run in runs
        for point in run.evaluation["curve"]
    )
    titles = {row["dataset"]: title(row) for row in rows}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(3.4, 0.4 + 2.4 * len(titles)), 2.9), layout="constrained")
        panels = figure.subplots(1, len(titles), squeeze=False)[0]
        for axes, (dataset, name) in zip(panels, titles.items(), strict=True):
            own = points[points["dataset"] == dataset]
            _curves(axes, own, style)
            if key == "ndcg@10":
                level = next(r["ranker_ndcg@10"] for r in rows if r["dataset"] == dataset)
                axes.axhline(level, color="black", linestyle="--", linewidth=1)
            _widen(axes, least_span)
            axes.set(title=name.replace(" (", "\n("), xlabel="PPO step", ylabel="")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels[0].set_ylabel(label)
        handles = [
            Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=1.8, label=variant)
            for variant, (colour, marker) in style.items()
        ]
        if key == "ndcg@10":
            handles.append(Line2D([], [], color="black", linestyle="--", label="SASRec alone"))
        columns = min(len(handles), 2 * len(titles) + 1)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def ablation(rows: Sequence[Row], margin: float) -> Figure:
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
        figure = Figure(
            figsize=(6.8, 0.9 + 0.3 * sum(heights) + 0.3 * len(groups)), layout="constrained"
        )
        panels = figure.subplots(
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
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _curves(axes: Axes, points: pd.DataFrame, style: Style) -> None:
    palette = {variant: colour for variant, (colour, _) in style.items()}
    common = {
        "x": "step",
        "y": "value",
        "hue": "variant",
        # The first variant is drawn last, on top: where a shield works, curves lie on each other.
        "hue_order": [variant for variant in reversed(style) if variant in set(points["variant"])],
        "palette": palette,
        "legend": False,
    }
    sns.lineplot(points, **common, units="seed", estimator=None, linewidth=0.6, alpha=0.55, ax=axes)
    sns.lineplot(
        points,
        **common,
        style="variant",
        markers={variant: marker for variant, (_, marker) in style.items()},
        dashes=False,
        errorbar="se",
        linewidth=1.8,
        markersize=4.5,
        ax=axes,
    )


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


def _widen(axes: Axes, least: float) -> None:
    low, high = axes.get_ylim()
    if (missing := least - (high - low)) > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)
