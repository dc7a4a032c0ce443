"""Learning curves of clicks and ranking quality.

In: runs and their rows. Out: a figure.
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
from shielded_recrl.report.figures.style import GREY, STYLE, Style, legend, styles
from shielded_recrl.report.runs import Run
from shielded_recrl.report.study import title


def figure(
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
        drawn = Figure(figsize=(max(3.4, 0.4 + 2.5 * len(titles)), 2.65), layout="constrained")
        panels = drawn.subplots(1, len(titles), squeeze=False)[0]
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
        handles += [
            Line2D([], [], color=GREY, linewidth=0.6, label="one seed"),
            Patch(color=GREY, alpha=0.2, linewidth=0, label="mean ± standard error"),
        ]
        if key == "ndcg@10":
            handles.append(Line2D([], [], color="black", linestyle="--", label="SASRec alone"))
        legend(drawn, handles, 2 * len(titles) + 1)
    return drawn


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


def _widen(axes: Axes, least: float) -> None:
    low, high = axes.get_ylim()
    if (missing := least - (high - low)) > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)
