"""What all figures share: style, colours, and files whose bytes depend on the numbers alone.

A variant has the same colour and marker in every figure and every study. The first colours are those
of Wong 2011; the next were chosen one by one to be furthest, in CIELAB, from those before under normal,
protan, deutan and tritan vision (Machado et al. 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from shielded_recrl.files import atomic

STYLE = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper"),
    "font.family": "DejaVu Sans",
    "pdf.fonttype": 42,
    # Ids within an SVG are else random.
    "svg.hashsalt": "recrl",
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
# What belongs to no variant.
GREY = "#4D4D4D"
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
    "svg": {"Date": None, "Creator": None},
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


def legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """A legend below the panels, of at most so many columns, as fit; the figure grows by its rows.

    A study may have any number of variants: a legend of fixed columns is cut off, and one of many
    rows takes the panels' room.
    """
    for number in range(min(columns, len(handles)), 0, -1):
        drawn = figure.legend(handles=handles, loc="outside lower center", ncols=number)
        box = drawn.get_window_extent()
        if box.width <= figure.bbox.width or number == 1:
            break
        drawn.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def save(figure: Figure, path: Path, kinds: Sequence[str] = ("png", "pdf")) -> None:
    """Write a figure in some formats beside each other; the path has no suffix."""
    for kind in kinds:
        # Kinds of fonts and numbers of ticks are read from the defaults in force when it is drawn.
        with atomic(path.with_name(f"{path.name}.{kind}")) as partial, mpl.rc_context(STYLE):
            figure.savefig(partial, format=kind, dpi=DPI, metadata=METADATA[kind])
