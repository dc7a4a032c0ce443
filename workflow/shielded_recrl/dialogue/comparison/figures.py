"""Figures of the comparison: differences between systems, training, recommender and critic.

In: evaluated runs, `evaluation.json` of the recommender, `report.json` of the critic. Out: figures in
the style of the study's. A training has one colour and marker in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from shielded_recrl.dialogue.comparison.contestants import BEST, RL, SUPERVISED
from shielded_recrl.dialogue.comparison.finding import Spread, pair_label, spread
from shielded_recrl.dialogue.comparison.runs import Run
from shielded_recrl.dialogue.comparison.text import Estimate, best_of
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.recommender.tables import ORDER, OURS
from shielded_recrl.report.figures.audits import FORBIDDEN
from shielded_recrl.report.figures.style import COLOURS, GREY, MARKERS, STYLE, Marker, legend

PAIRS = ((RL, SUPERVISED), (BEST, SUPERVISED), (RL, BEST))
CURVES = {
    "reward": "Reward of a response",
    "reward_critic": "Critic's overall score",
    "kl": "KL to supervised, nats a token",
}
METRIC = "recall@10"
# Points of a curve, at the most; further steps are averaged.
POINTS = 100
WIDTH = 8.2
# Longest line of a label, in letters.
LABEL = 16
DOTS = {"markersize": 4.5, "linestyle": "", "zorder": 4}


def differences(runs: Sequence[Run]) -> Figure:
    """Paired differences of overall scores, a panel for each pair of systems, a row for each judge.

    Whiskers are 95% intervals of one training's test dialogues; the bar is the mean over trainings.
    """
    judges, seeds = runs[0].judges, _styles(runs)
    samples = best_of(runs[0].evaluation)
    with mpl.rc_context(STYLE):
        height = 0.6 + len(judges) * (0.28 + 0.13 * len(runs))
        drawn = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = drawn.subplots(1, len(PAIRS), sharex=True, sharey=True)
        for axes, pair in zip(panels, PAIRS, strict=True):
            axes.axvline(0, color="black", linewidth=0.8, zorder=1)
            for place, judge in enumerate(judges):
                _seeds(axes, place, spread(runs, pair, judge), list(seeds.values()))
            _rows(axes, [judge.replace("_", " ") for judge in judges])
            axes.set_title(pair_label(pair, samples))
            axes.xaxis.set_major_locator(MaxNLocator(4))
        panels[1].set_xlabel("Difference of the overall score")
        handles = _handles(seeds)
        if len(runs) > 1:
            bar = {"marker": "|", "markersize": 10, "linestyle": "", "color": "black"}
            handles.append(Line2D([], [], **bar, label="mean over trainings"))
        legend(drawn, handles, 6)
    return drawn


def training(runs: Sequence[Run]) -> Figure:
    """Reward, the critic's part of it and KL over PPO steps, a line for each training."""
    seeds = _styles(runs)
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        panels = drawn.subplots(1, len(CURVES))
        for axes, (key, title) in zip(panels, CURVES.items(), strict=True):
            for run, (colour, marker) in zip(runs, seeds.values(), strict=True):
                steps, values = blocks([(row["step"], row[key]) for row in run.log])
                axes.plot(steps, values, color=colour, linewidth=1.2, marker=marker, markersize=3)
            axes.set(title=title, xlabel="PPO step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend(drawn, _handles(seeds, line="-"), 6)
    return drawn


def blocks(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Steps and values [2, n] in equal parts of which each is its mean; the last may be shorter.

    >>> blocks([(1, 0.5), (2, 0.7)]).tolist()
    [[1.0, 2.0], [0.5, 0.7]]
    """
    size = -(-len(points) // POINTS)
    values = np.array(points, dtype=float)
    return np.array([values[at : at + size].mean(axis=0) for at in range(0, len(values), size)]).T


def recommender(group: Mapping[str, Any]) -> Figure:
    """Recall@10 of each system on new films, and how far the recommender is ahead of each other.

    Args:
        group: targets of one group in the recommender's evaluation.json.
    """
    names = [name for name in ORDER if name in group["systems"]]
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, 0.8 + 0.3 * len(names)), layout="constrained")
        reached, ahead = drawn.subplots(1, 2, sharey=True)
        ahead.axvline(0, color="black", linewidth=0.8, zorder=1)
        for place, name in enumerate(names):
            mark = (COLOURS[0], "o") if name == OURS else (GREY, "s")
            _interval(reached, place, group["systems"][name][METRIC], *mark)
            if name != OURS:
                _interval(ahead, place, group["ahead_of"][name][METRIC], *mark)
        for axes in (reached, ahead):
            _rows(axes, names)
        reached.set_xlim(left=0)
        reached.set(title="Recall@10, new films", xlabel="Share of targets in the first ten")
        ahead.set(title="Recommender less each other", xlabel="Paired difference of Recall@10")
    return drawn


def critic(report: Mapping[str, Any]) -> Figure:
    """Gain of each head over the mean predictor, and share of pairs with the fault ranked below.

    Args:
        report: report.json of the critic.
    """
    heads = {name: report["heads"][name]["gain"] for name in HEADS}
    faults = {name: row["share"] for name, row in report["corruptions"].items()}
    with mpl.rc_context(STYLE):
        rows = max(len(heads), len(faults))
        drawn = Figure(figsize=(WIDTH, 1.0 + 0.28 * rows), layout="constrained")
        left, right = drawn.subplots(1, 2)
        for axes, found, gate in ((left, heads, 0.0), (right, faults, 0.5)):
            for place, value in enumerate(found.values()):
                _interval(axes, place, value, COLOURS[0], "o")
            _rows(axes, list(found))
            low, high = axes.get_xlim()
            low, high = min(low, gate - 0.1 * (high - gate)), max(high, gate)
            axes.axvspan(low, gate, color=FORBIDDEN, zorder=0)
            axes.axvline(gate, color="black", linewidth=0.8, zorder=1)
            axes.set_xlim(low, high)
        left.set(title="Gain over the mean, by head", xlabel="Squared error saved")
        right.set(title="Person's response above its fault", xlabel="Share of pairs")
        legend(drawn, [Patch(color=FORBIDDEN, label="the interval may not reach in here")], 1)
    return drawn


def _styles(runs: Sequence[Run]) -> dict[int, tuple[str, Marker]]:
    """Colour and marker of each training, by its seed."""
    return {
        run.seed: (COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
        for place, run in enumerate(runs)
    }


def _seeds(axes: Axes, place: int, found: Spread, styles: Sequence[tuple[str, Marker]]) -> None:
    """One judge's row: its trainings one above the other, and their mean."""
    apart = min(0.22, 0.8 / len(styles))
    for number, (value, mark) in enumerate(zip(found.values, styles, strict=True)):
        if value is not None:
            _interval(axes, place + apart * (number - (len(styles) - 1) / 2), value, *mark)
    if len(found.means) > 1:
        reach = apart * len(styles) / 2
        axes.vlines(np.mean(found.means), place - reach, place + reach, color="black", linewidth=1)


def _interval(axes: Axes, height: float, value: Estimate, colour: str, marker: Marker) -> None:
    axes.hlines(height, value["low"], value["high"], color=colour, linewidth=1.2)
    axes.plot(value["mean"], height, color=colour, marker=marker, **DOTS)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [fill(name, LABEL) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _handles(seeds: Mapping[int, tuple[str, Marker]], line: str = "") -> list[Line2D]:
    return [
        Line2D(
            [], [], color=colour, marker=marker, markersize=4.5, linestyle=line, label=f"seed {n}"
        )
        for n, (colour, marker) in seeds.items()
    ]
