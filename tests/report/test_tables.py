"""LaTeX text, and seeds taken together."""

import re

import pytest

from shielded_recrl.report.columns import row
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import ReportSettings
from shielded_recrl.report.study import Cell, cells, title
from shielded_recrl.report.tables import between, drift, escape, number, results


@pytest.fixture
def grouped(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    return cells([row(run, ReportSettings()) for run in runs])


def test_escape():
    assert escape(r"a_b & 5% #1 $x {y} ~^\z") == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}z"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.1234,), "$0.123$"),
        ((0.1234, 2, True), "$+0.12$"),
        ((-0.0005,), "$-0.001$"),
        ((9.96e-5,), r"$1.0\times10^{-4}$"),
        ((-2.5e-7, 3, True), r"$-2.5\times10^{-7}$"),
        ((0.004, 3, False, 0.01), r"$4.0\times10^{-3}$"),
        ((0.0, 3, True), "$0$"),
        ((None,), "--"),
    ],
)
def test_numbers(arguments, text):
    assert number(*arguments) == text


def test_brackets_are_left_out_where_they_say_nothing():
    assert between(0.5, (0.4, 0.6), 1) == "$0.5$ [$0.4$, $0.6$]"
    assert between(1.0, (1.0, 1.0)) == "$1.000$"
    assert between(0.5, None) == "$0.500$"
    assert between(None, None) == "--"


def test_a_cell_spans_all_intervals_of_its_seeds():
    rows = [
        {"x": 1.0, "x_low": 0.5, "x_high": 1.2},
        {"x": 2.0, "x_low": 0.8, "x_high": 2.5},
        {"x": None, "x_low": None, "x_high": None},
    ]
    cell = Cell("books", "shielded", rows)
    assert cell.mean("x") == 1.5
    assert cell.span("x") == (1.0, 2.0)
    assert cell.interval("x") == (0.5, 2.5)
    empty = Cell("books", "shielded", rows[2:])
    assert (empty.mean("x"), empty.span("x"), empty.interval("x")) == (None, None, None)


@pytest.mark.parametrize(
    ("synthetic", "sequential", "expected"),
    [
        (True, True, "MovieLens, 162,541 users (synthetic data)"),
        (True, False, "MovieLens, 162,541 users (synthetic data, unordered)"),
        (False, False, "MovieLens, 162,541 users (unordered)"),
        (False, True, "MovieLens, 162,541 users"),
    ],
)
def test_titles_say_what_the_data_are(synthetic, sequential, expected):
    about = {"synthetic": synthetic, "sequential": sequential}
    assert title(about | {"dataset": "ml25m", "users": 162_541}) == expected


@pytest.mark.parametrize(("table", "columns", "lines"), [(results, 10, 9), (drift, 7, 18)])
def test_tables_are_rectangular_and_ruled(grouped, table, columns, lines):
    text = table(grouped)
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 2 + lines
    for line in body:
        spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d)\}", line))
        assert len(re.split(r"(?<!\\)&", line)) + spanned == columns
    assert text.count(r"\midrule") == 3
    assert text.startswith(r"\begin{tabular}{ll")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)_", text)


def test_results_show_means_over_seeds(grouped):
    cell = next(c for c in grouped if (c.dataset, c.variant) == ("books", "shielded"))
    line = next(x for x in results(grouped).splitlines() if x.startswith(" & shielded & 3"))
    mean = sum(r["ctr_relative"] for r in cell.rows) / 3
    low = min(r["ctr_relative_low"] for r in cell.rows)
    assert f"${100 * (mean - 1):+.1f}$ [${100 * (low - 1):+.1f}$" in line
    assert "Amazon reviews, 400 users (synthetic data) & no\\_proj & 3" in results(grouped)
