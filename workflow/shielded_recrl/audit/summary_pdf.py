"""The audits' summary as a PDF of a few pages, for people who read no repository.

In: audit.json of `audit summarise`. Out: the PDF's bytes, equal for equal input. Seeds are taken
together, by the worst of them: the Markdown page has each.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from fpdf import FPDF, FontFace
from fpdf.enums import TableBordersLayout, XPos, YPos

from shielded_recrl.audit.summary_page import LEGEND, SIGNS, headline, judged_by, name, number, why

FONT = "DejaVu"
# matplotlib ships this font, and it has far more letters than the fonts every PDF reader knows.
FONT_FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")
# When a summary was printed is no part of it: equal audits give equal bytes.
PRINTED = datetime(2000, 1, 1, tzinfo=UTC)
WIDTH = 190.0
INK, MUTED, RULE = (33, 37, 41), (105, 112, 119), (206, 212, 218)
# Told apart by lightness and by their sign, too.
FILLS = {True: (226, 240, 233), False: (250, 205, 184), None: (241, 243, 245)}
# What a page has room for; the Markdown page has the rest.
LISTED, TEXTS = 12, 6
LETTERS = 160
# Figures of the second table: section, label, heading.
CHANGES = (
    ("toxicity", "mean", "toxicity\nmean"),
    ("toxicity", "95th percentile", "toxicity\np95"),
    ("popularity", "Gini", "Gini"),
    ("popularity", "long-tail share", "long-tail\nshare"),
    ("fairness", "group gap", "group gap\nof NDCG@10"),
    ("privacy", "leaking texts", "leaking\ntexts"),
    ("injection", "attacks", "attacks\nthat succeed"),
    ("grounding", "name their item", "texts that name\ntheir item"),
)
Cell = tuple[str, list[dict[str, Any]]]


def render(summary: dict[str, Any]) -> bytes:
    """The PDF of a summary."""
    pdf = _Pdf()
    cells = [
        (dataset, variant, list(group))
        for (dataset, variant), group in groupby(
            summary["runs"], lambda run: (run["dataset"], run["variant"])
        )
    ]
    _head(pdf, summary)
    _verdicts(pdf, summary, cells)
    _broken(pdf, summary)
    _changes(pdf, cells)
    _findings(pdf, summary)
    _texts(pdf, summary)
    return bytes(pdf.output())


def worst(verdicts: Sequence[dict[str, Any]], direction: str) -> dict[str, Any]:
    """The verdict that speaks most against a line: not shown, then by its worse end.

    Args:
        verdicts: of one line, one for each seed.
        direction: the side of the bound that is allowed.
    """
    sign = 1 if direction == "below" else -1

    def order(verdict: dict[str, Any]) -> tuple[int, float]:
        end = verdict["worse_end"]
        if verdict["holds"] is None:
            return 0, 0.0
        return 1 + (verdict["holds"] is False), float("inf") if end is None else sign * end

    return max(verdicts, key=order)


class _Pdf(FPDF):
    """A4 with one font, the page number below, and text of a size and a weight."""

    def __init__(self) -> None:
        super().__init__()
        for style, suffix in (("", ""), ("B", "-Bold")):
            self.add_font(FONT, style, FONT_FOLDER / f"DejaVuSans{suffix}.ttf")
        self.set_creation_date(PRINTED)
        self.set_title("Audits against the policy")
        self.set_lang("en")
        self.set_margins(10, 12)
        self.set_auto_page_break(True, 16)
        self.add_page()

    def footer(self) -> None:
        self.set_y(-11)
        self.set_font(FONT, "", 7)
        self.set_text_color(*MUTED)
        self.cell(0, 4, f"{self.page_no()}", align="R")

    def printable(self, text: str) -> str:
        """The text on one line, with a mark for each letter that the font lacks."""
        known = self.fonts[FONT.lower()].cmap
        plain = " ".join(text.split())
        return "".join(
            letter if ord(letter) in known and unicodedata.category(letter)[0] != "C" else "\ufffd"
            for letter in plain
        )

    def write_line(
        self, text: str, size: float = 8, style: str = "", color: tuple[int, int, int] = INK
    ) -> None:
        """A paragraph over the whole width."""
        self.set_font(FONT, style, size)
        self.set_text_color(*color)
        self.multi_cell(0, size * 0.5, text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    def heading(self, text: str) -> None:
        """A heading that is not left alone at the foot of a page."""
        if self.will_page_break(24):
            self.add_page()
        self.ln(4)
        self.write_line(text, 11, "B")
        self.ln(1)

    def rows(
        self,
        header: Sequence[str],
        body: Iterable[Sequence[tuple[str, bool | str | None]]],
        widths: Sequence[float],
        texts: int,
    ) -> None:
        """A table; its first `texts` columns are words, the others figures.

        Args:
            header: one heading a column, repeated on every page.
            body: cells as text, and the verdict whose colour they have ("" for no colour).
            widths: relative widths of the columns.
            texts: number of columns aligned left.
        """
        self.set_font(FONT, "", 6.5)
        self.set_text_color(*INK)
        self.set_draw_color(*RULE)
        with self.table(
            width=WIDTH,
            col_widths=widths,
            text_align=["L"] * texts + ["R"] * (len(header) - texts),
            headings_style=FontFace(emphasis="B", color=INK, fill_color=(255, 255, 255)),
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
            line_height=3.1,
            padding=(0.9, 0.8),
        ) as table:
            table.row(header)
            for cells in body:
                row = table.row()
                for text, verdict in cells:
                    fill = FILLS.get(verdict, (255, 255, 255))
                    emphasis = "B" if verdict is False else None
                    row.cell(text, style=FontFace(fill_color=fill, emphasis=emphasis))


def _head(pdf: _Pdf, summary: dict[str, Any]) -> None:
    holds, sentence = headline(summary)
    pdf.write_line("Audits against the policy", 16, "B")
    pdf.ln(2)
    pdf.set_fill_color(*FILLS[holds])
    pdf.set_font(FONT, "B", 9)
    pdf.set_text_color(*INK)
    pdf.multi_cell(
        0, 5, f"{SIGNS[holds]}  {sentence}", fill=True, padding=2, align="L", new_y=YPos.NEXT
    )
    pdf.ln(2)
    pdf.write_line(
        "Each line of the policy is judged on the worse end of the 95% interval of its figure after "
        "training. A row takes the seeds of a variant together and shows the worst of them. Variants "
        f"marked * have to keep the policy; the others are controls and stop nothing. {LEGEND}",
        7.5,
        color=MUTED,
    )


def _verdicts(pdf: _Pdf, summary: dict[str, Any], cells: Sequence[Cell]) -> None:
    pdf.heading("Verdicts: worse end against its bound")
    lines = summary["policy"]["lines"]

    def row(cell: Cell) -> list[tuple[str, Any]]:
        found = [
            worst([run["verdicts"][name] for run in cell[2]], line["direction"])
            for name, line in lines.items()
        ]
        return _names(pdf, cell) + [
            (
                SIGNS[one["holds"]]
                if one["worse_end"] is None
                else f"{number(one['worse_end'])} {SIGNS[one['holds']]}",
                one["holds"],
            )
            for one in found
        ]

    header = ["dataset", "variant", "seeds", *(_heading(line) for line in lines.values())]
    pdf.rows(header, map(row, cells), _widths(len(lines)), 2)


def _broken(pdf: _Pdf, summary: dict[str, Any]) -> None:
    pdf.heading("Lines that gated variants break")
    broken = [
        f"{name(run)}: {line}, {verdict['reason']}"
        for run in summary["runs"]
        if run["gated"]
        for line, verdict in run["verdicts"].items()
        if verdict["holds"] is False
    ]
    _list(pdf, broken)


def _changes(pdf: _Pdf, cells: Sequence[Cell]) -> None:
    shown = [
        (section, key, heading)
        for section, key, heading in CHANGES
        if any(key in run["figures"].get(section, {}) for cell in cells for run in cell[2])
    ]
    if not shown:
        return
    pdf.heading("Before → after training, mean over seeds")

    def row(cell: Cell) -> list[tuple[str, Any]]:
        texts = []
        for section, key, _ in shown:
            pairs = [run["figures"].get(section, {}).get(key) for run in cell[2]]
            sides = zip(*(pair for pair in pairs if pair is not None), strict=True)
            texts.append("→".join(f"{fmean(side):.3g}" for side in sides if None not in side))
        return _names(pdf, cell) + [(text, "") for text in texts]

    header = ["dataset", "variant", "seeds", *(heading for _, _, heading in shown)]
    pdf.rows(header, map(row, cells), _widths(len(shown)), 2)


def _findings(pdf: _Pdf, summary: dict[str, Any]) -> None:
    pdf.heading("Findings in gated variants")
    _list(
        pdf,
        [
            f"{name(run)}: {text}"
            for run in summary["runs"]
            if run["gated"]
            for text in run["findings"]
        ],
    )


def _texts(pdf: _Pdf, summary: dict[str, Any]) -> None:
    pdf.heading("Who judged, and the worst texts of all runs")
    for text in dict.fromkeys(
        f"Toxicity is judged by {judged_by(run)}." for run in summary["runs"]
    ):
        pdf.write_line(pdf.printable(text), 7.5, color=MUTED)
    pdf.ln(1)
    # A policy that writes one sentence would fill the list with it.
    firsts = {
        text["text"]: (run, text)
        for run in reversed(summary["runs"])
        for text in run["worst_texts"]
    }
    worst_first = sorted(
        firsts.values(),
        key=lambda found: (found[1]["score"] is not None, -(found[1]["score"] or 0)),
    )
    _list(
        pdf,
        [f"{name(run)}, {why(text)}: “{_cut(text['text'])}”" for run, text in worst_first],
        TEXTS,
    )


def _list(pdf: _Pdf, texts: Sequence[str], most: int = LISTED) -> None:
    for text in texts[:most]:
        pdf.write_line(f"•  {pdf.printable(text)}", 7.5)
        pdf.ln(0.6)
    if not texts:
        pdf.write_line("None.", 7.5)
    if len(texts) > most:
        pdf.write_line(f"… and {len(texts) - most} more, see audit.md.", 7.5, color=MUTED)


def _names(pdf: _Pdf, cell: Cell) -> list[tuple[str, Any]]:
    dataset, variant, runs = cell
    mark = " *" if runs[0]["gated"] else ""
    return [(pdf.printable(dataset), ""), (pdf.printable(variant) + mark, ""), (str(len(runs)), "")]


def _widths(figures: int) -> list[float]:
    """Millimetres of dataset, variant, seeds, and of that many figures, which share the rest."""
    names = [14.0, 24.0, 11.0]
    return names + [(WIDTH - sum(names)) / figures] * figures


def _heading(line: dict[str, Any]) -> str:
    sign = "<" if line["direction"] == "below" else ">"
    bar = "|" if line["absolute"] else ""
    return f"{bar}{line['name'].replace('_', ' ')}{bar}\n{sign} {line['bound']:g}"


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
