"""Collect finished runs and their audits into one table, figures and LaTeX tables.

In: run folders, audit files and their summary, stats.json files. Out: aggregate_results.csv with one
row a run, nine figures as PNG and PDF, results.tex and drift.tex, pages of explanations, certificates
and datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from shielded_recrl.files import write_text
from shielded_recrl.report import certificates, csv_table, datasets, explanations, tables
from shielded_recrl.report.columns import ALL_COLUMNS, Row, row
from shielded_recrl.report.runs import Run, load_runs, read_summary
from shielded_recrl.report.settings import TableSettings
from shielded_recrl.report.study import Cell, cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main(
    *,
    runs: tuple[Path, ...],
    audits: tuple[Path, ...],
    summary: Path,
    stats: tuple[Path, ...],
    out: Path,
    figures: Path,
    tables_folder: Annotated[Path, tyro.conf.arg(name="tables")],
    texts: Path,
    certificates_page: Annotated[Path, tyro.conf.arg(name="certificates")],
    datasets_page: Annotated[Path, tyro.conf.arg(name="datasets")],
    settings: Annotated[TableSettings, tyro.conf.arg(name="")],
) -> None:
    """Collect runs and audits into one table, figures and LaTeX tables.

    Args:
        runs: folders of evaluated runs.
        audits: JSON files of `audit run`, at least one for each run.
        summary: audit.json of `audit summarise`.
        stats: stats.json of every dataset.
        out: CSV file to write.
        figures: folder to write figures to.
        tables_folder: folder to write LaTeX tables to.
        texts: Markdown page of explanations to write.
        certificates_page: Markdown page of certificates to write.
        datasets_page: Markdown page of datasets to write.
        settings: margin of equivalence.
    """
    loaded = load_runs(runs, audits, stats)
    rows = [row(run, settings) for run in loaded]
    certified = certificates.page(loaded)
    sources = list({run.dataset: run.stats for run in loaded}.values())
    judged = read_summary(summary)
    from shielded_recrl.report.figures.style import save

    for name, figure in draw(loaded, rows, judged, settings.ndcg_margin).items():
        save(figure, figures / name)
    study = cells(rows)
    write_text(tables_folder / "results.tex", tables.results(study))
    write_text(tables_folder / "drift.tex", tables.drift(study))
    write_text(texts, explanations.page(loaded))
    write_text(certificates_page, certified)
    write_text(datasets_page, datasets.page(sources))
    write_text(out, to_csv(rows))
    print(overview(study))
    print(
        f"{out}: {len(rows)} runs of {len(study)} variants; figures: {figures}; "
        f"tables: {tables_folder}"
    )


def draw(
    runs: Sequence[Run], rows: Sequence[Row], judged: dict[str, Any], margin: float
) -> dict[str, Figure]:
    """Every figure of the report, by the name of its file."""
    # Seaborn and pandas take seconds to import; bad input is refused before that.
    from shielded_recrl.report.figures import (
        ablation,
        audits,
        frontier,
        over_steps,
        overoptimisation,
        simulators,
        texts,
    )

    return {
        "ctr_over_steps": over_steps.figure(runs, rows, "ctr", "Simulated CTR"),
        "ndcg_over_steps": over_steps.figure(
            runs, rows, "ndcg@10", "NDCG@10, served", least_span=4 * margin
        ),
        "ablation": ablation.figure(rows, margin),
        "frontier": frontier.figure(rows),
        "overoptimisation": overoptimisation.figure(runs, rows),
        "quality_weight": simulators.quality_weight(runs, rows),
        "calibration": simulators.calibration(runs, rows),
        "texts": texts.figure(runs, rows),
        "audits": audits.figure(judged),
    }


def to_csv(rows: Sequence[Row]) -> str:
    """The table as text, columns in their documented order."""
    return csv_table.to_csv(rows, [column.name for column in ALL_COLUMNS])


def overview(study: Sequence[Cell]) -> str:
    """A compact table for the terminal: means over seeds, one line for each dataset and variant."""
    header = (
        "dataset",
        "variant",
        "seeds",
        "relative CTR",
        "lift share",
        "NDCG@10 change",
        "held-out top 10 same",
    )
    lines = [header] + [
        (
            cell.dataset,
            cell.variant,
            str(len(cell.rows)),
            _format(cell.mean("ctr_relative"), ".3f"),
            _format(cell.mean("lift_share"), ".0%"),
            _format(cell.mean("ndcg_change"), "+.4f"),
            _format(cell.mean("drift_heldout_top10_identical"), ".1%"),
        )
        for cell in study
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if place < 2 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _format(value: float | None, form: str) -> str:
    return "undefined" if value is None else format(value, form)
