"""The learning curve of one PPO run as a figure: reward, KL, length and entropy over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shielded_recrl.files import atomic

PANELS = {
    "reward": "mean reward",
    "kl": "KL to the base [nats/token]",
    "words": "mean length [words]",
    "entropy": "entropy [nats/token]",
}
RAW, SMOOTH = "#56B4E9", "#0072B2"
DPI = 110
# The smoothed line is a mean over this share of the steps.
WINDOW_SHARE = 0.1


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """Centred running mean; at the ends, the mean of the part of the window that is there.

    >>> smoothed([0.0, 3.0, 6.0, 0.0], 3).tolist()
    [1.5, 3.0, 3.0, 3.0]
    """
    reach = window // 2
    return np.array(
        [np.mean(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]
    )


def learning_curve(rows: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Each figure over steps, raw and smoothed.

    Args:
        rows: of train.jsonl, at least one.
        title: above the panels.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    steps = [row["step"] for row in rows]
    window = max(1, round(WINDOW_SHARE * len(rows)))
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (key, label) in zip(panels.flat, PANELS.items(), strict=True):
        values = [row[key] for row in rows]
        axes.plot(steps, values, color=RAW, linewidth=0.8, label="each step")
        axes.plot(steps, smoothed(values, window), color=SMOOTH, linewidth=2, label="running mean")
        axes.set_ylabel(label)
        axes.grid(linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[1]:
        axes.set_xlabel("PPO step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0, 0].legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    return figure


def save_curve(rows: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Write `learning_curve` as a PNG whose bytes depend on the rows and the title alone."""
    with atomic(path) as partial:
        learning_curve(rows, title).savefig(
            partial, format="png", dpi=DPI, metadata={"Software": None}
        )
