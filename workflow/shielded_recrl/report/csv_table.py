"""Rows as CSV text.

In: rows and the names of their columns. Out: the text of a CSV file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from shielded_recrl.report.columns import Row, as_text


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A table as text, with the columns named, in their order."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([as_text(row[name]) for name in columns] for row in rows)
    return stream.getvalue()
