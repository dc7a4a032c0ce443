r"""LaTeX tables: bare `tabular` environments for \input, with the rules of the booktabs package.

In: cells of the study. Out: results.tex and drift.tex as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from shielded_recrl.report.study import Cell, title

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}
UNDEFINED = "--"


def escape(text: str) -> str:
    r"""Text that LaTeX prints as it stands.

    >>> print(escape("no_proj 5%"))
    no\_proj 5\%
    """
    return "".join(SPECIAL.get(character, character) for character in text)


def number(
    value: float | None, digits: int = 3, signed: bool = False, least: float | None = None
) -> str:
    r"""A number in math mode: fixed digits, or a power of ten if it is smaller than `least`.

    By default that is half a unit of the last digit: nothing but 0 is printed as 0.

    >>> print(number(0.0421, signed=True), number(-1.9e-6), number(0.0), number(None))
    $+0.042$ $-1.9\times10^{-6}$ $0$ --
    """
    if value is None:
        return UNDEFINED
    if value == 0:
        return "$0$"
    sign = "+" if signed else ""
    if abs(value) < (0.5 * 10**-digits if least is None else least):
        mantissa, exponent = f"{value:{sign}.1e}".split("e")
        return rf"${mantissa}\times10^{{{int(exponent)}}}$"
    return f"${value:{sign}.{digits}f}$"


def between(mean: float | None, ends: tuple[float, float] | None, *form: int | bool | float) -> str:
    r"""A mean with an interval or a range, left out where its ends read like the mean.

    >>> print(between(0.982, (0.979, 0.985)), between(1.0, (1.0, 1.0)))
    $0.982$ [$0.979$, $0.985$] $1.000$
    """
    texts = [number(value, *form) for value in (mean, *(ends or ()))]
    return texts[0] + (f" [{texts[1]}, {texts[2]}]" if len({*texts}) > 1 else "")


def results(cells: Sequence[Cell]) -> str:
    """Clicks and ranking quality: means over seeds, with the hull of the seeds' 95% intervals."""
    header = (
        r"& & & \multicolumn{3}{c}{Simulated CTR} & \multicolumn{4}{c}{NDCG@10}",
        r"Dataset & Variant & Seeds & before & after & change, \% [95\%] "
        r"& SASRec & before & after & change [95\%]",
    )
    rows = [
        [
            str(len(cell.rows)),
            number(cell.mean("ctr_before")),
            number(cell.mean("ctr_after")),
            between(*_percent(cell, "ctr_relative"), 1, True),
            number(cell.mean("ranker_ndcg@10")),
            number(cell.mean("served_before_ndcg@10")),
            number(cell.mean("served_after_ndcg@10")),
            between(cell.mean("ndcg_change"), cell.interval("ndcg_change"), 4, True),
        ]
        for cell in cells
    ]
    return tabular("llrrrrrrrr", header, [(4, 6), (7, 10)], cells, rows)


def drift(cells: Sequence[Cell]) -> str:
    """What training moved in the ranking: means over seeds, with the range over seeds."""
    columns: dict[str, tuple[int | bool | float, ...]] = {
        "max_score_change": (3, False, 0.01),
        "mean_score_change": (3, False, 0.01),
        "top10_identical": (3,),
        "kendall_tau": (4,),
    }
    header = (
        r"& & & \multicolumn{2}{c}{$|\Delta\,\mathrm{score}|$} & Top 10 & Kendall",
        r"Dataset & Variant & Users & max & mean & identical & $\tau$",
    )
    rows, owners = [], []
    for cell in cells:
        for role, name in (("protected", "protected"), ("heldout", "held-out")):
            values = [
                between(cell.mean(column), cell.span(column), *form)
                for column, form in ((f"drift_{role}_{key}", form) for key, form in columns.items())
            ]
            rows.append([name, *values])
            owners.append(cell)
    return tabular("lllrrrr", header, [(4, 5)], owners, rows)


def _percent(cell: Cell, column: str) -> tuple[float | None, tuple[float, float] | None]:
    """A ratio and its interval as percent of change: 1.05 is 5."""
    mean, ends = cell.mean(column), cell.interval(column)
    return (
        None if mean is None else 100 * (mean - 1),
        None if ends is None else (100 * (ends[0] - 1), 100 * (ends[1] - 1)),
    )


def tabular(
    alignment: str,
    header: tuple[str, str],
    rules: list[tuple[int, int]],
    owners: Sequence[Cell],
    rows: list[list[str]],
) -> str:
    """Rows with their dataset and variant in front, each named once, datasets apart by a rule."""
    lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    lines.append(header[0] + r" \\")
    lines.append(" ".join(rf"\cmidrule(lr){{{first}-{last}}}" for first, last in rules))
    lines.append(header[1] + r" \\")
    pairs = zip(owners, rows, strict=True)
    for _, group in groupby(pairs, lambda pair: pair[0].dataset):
        lines.append(r"\midrule")
        shown: set[str] = set()
        for cell, row in group:
            names = [escape(title(cell.rows[0])), escape(cell.variant)]
            lines.append(" & ".join(["" if n in shown else n for n in names] + row) + r" \\")
            shown.update(names)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
