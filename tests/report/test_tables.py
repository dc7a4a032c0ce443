"""LaTeX text, and seeds taken together."""

import re
import shutil
import subprocess

import pytest

from evidence import reaudit, write_outcomes
from shielded_recrl.report import significance
from shielded_recrl.report.columns import row
from shielded_recrl.report.runs import load_runs
from shielded_recrl.report.settings import TableSettings
from shielded_recrl.report.study import Cell, cells, title
from shielded_recrl.report.tables import between, drift, escape, number, results


@pytest.fixture
def grouped(study):
    runs = load_runs(study.runs, study.audits, study.stats)
    return cells([row(run, TableSettings()) for run in runs])


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


DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage{graphicx}
\begin{document}
%s
\end{document}
"""


@pytest.fixture
def compared(study, tmp_path):
    """significance.tex of the runs on Books."""
    texts = {(user, 1, 1): (0.3 + 0.01 * user, 0.2, 0.5) for user in range(8)}
    runs, audits = (
        [path for path in paths if "books" in path.parts] for paths in (study.runs, study.audits)
    )
    for place, (run, audit) in enumerate(zip(runs, audits, strict=True)):
        own = {key: (clicks + 0.01 * place, *rest) for key, (clicks, *rest) in texts.items()}
        write_outcomes(run, own, dict.fromkeys(range(8), 0.001 * place))
        reaudit(run, audit)
    significance.main(
        runs=tuple(runs),
        audits=tuple(audits),
        stats=tuple(study.stats),
        out=tmp_path / "significance.csv",
        table_path=tmp_path / "significance.tex",
        page_path=tmp_path / "significance.md",
        seed=42,
    )
    return (tmp_path / "significance.tex").read_text()


@pytest.mark.skipif(
    not (shutil.which("pdflatex") or shutil.which("tectonic")),
    reason="neither pdflatex nor tectonic is on PATH",
)
def test_latex_takes_every_table(grouped, compared, tmp_path):
    tables = {"results": results(grouped), "drift": drift(grouped), "significance": compared}
    for name, text in tables.items():
        (tmp_path / f"{name}.tex").write_text(text, encoding="utf-8")
    # Scaled to the page: how wide a table may be is for its document to say.
    body = "\n\\clearpage\n".join(
        rf"\noindent\resizebox{{\textwidth}}{{!}}{{\input{{{n}}}}}" for n in tables
    )
    (tmp_path / "all.tex").write_text(DOCUMENT % body, encoding="utf-8")
    options = ["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
    command = ["pdflatex", *options] if shutil.which("pdflatex") else ["tectonic"]
    done = subprocess.run(
        [*command, "all.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "all.pdf").read_bytes().startswith(b"%PDF")
    assert "Overfull" not in done.stdout
