"""Score filled sheets.

In: the key of a sheet and one filled sheet.csv a rater. Out: scores.json and a Markdown page: how
far each rater can be relied on, and which system the reliable ones prefer.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.files import write_json, write_text
from shielded_recrl.report.human.key import ANSWERS, Key, read_key
from shielded_recrl.report.human.page import to_markdown
from shielded_recrl.report.human.preferences import Rater, evaluate
from shielded_recrl.report.human.settings import ScoreSettings

# Spreadsheets write the list separator of their country.
DELIMITERS = ",;\t"
# Problems of a sheet that its error names.
SHOWN = 10


def main(
    *,
    key: Path,
    sheets: tuple[Path, ...],
    out: Path,
    page: Path,
    settings: Annotated[ScoreSettings, tyro.conf.arg(name="")],
    seed: int = 42,
) -> None:
    """Score filled sheets.

    Args:
        key: JSON file that `sheet` wrote as the key.
        sheets: filled CSV files, one a rater, named as the rater.
        out: JSON file to write.
        page: Markdown page to write.
        settings: what makes a rater count.
        seed: of the bootstrap.
    """
    read = read_key(key)
    raters = [read_sheet(path, read, settings.missing) for path in sheets]
    names = [rater.name for rater in raters]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UserError(f"{sheets[place]}: a second sheet of {name!r}; rename one of them")
    scores = evaluate(read, raters, settings.attention_threshold, settings.bootstrap, seed)
    write_json(out, scores)
    write_text(page, to_markdown(scores, "Human study"))
    excluded = [one["name"] for one in scores["raters"] if one["excluded"]]
    left_out = f"; left out for attention: {', '.join(excluded)}" if excluded else ""
    print(f"{out}: {len(raters) - len(excluded)} of {len(raters)} raters counted{left_out}")


def read_sheet(path: Path, key: Key, missing: str = "refuse") -> Rater:
    """The answers in a filled sheet; the rater is called like the file.

    Args:
        path: CSV file with columns id and answer, in any order, whatever the separator.
        key: of the sheet.
        missing: `refuse` or `skip` rows without an answer.

    Raises:
        UserError: the file is no sheet of the key, or rows are unknown, answered twice, invalid, or,
            where they are refused, missing: each is named.
    """
    known = {row.id: place for place, row in enumerate(key.rows, start=1)}
    answers: dict[str, str] = {}
    problems = []
    seen = set()
    for line, row_id, given in _read_cells(path):
        where = f"row {known.get(row_id)} ({row_id})"
        answer = given.strip().casefold()
        if row_id not in known:
            problems.append(f"line {line}: id {row_id[:20]!r} is not in the key")
        elif row_id in seen:
            problems.append(f"{where}: answered twice")
        elif answer in ANSWERS:
            answers[row_id] = answer
        elif answer:
            problems.append(f"{where}: {given.strip()[:20]!r} is no answer")
        elif missing == "refuse":
            problems.append(f"{where}: no answer")
        seen.add(row_id)
    absent = [f"row {known[row_id]} ({row_id}): missing" for row_id in known if row_id not in seen]
    problems += absent if missing == "refuse" else []
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{path}: {'; '.join(problems[:SHOWN])}{more}. Expected {', '.join(ANSWERS)} for every "
            "row of the sheet that belongs to the key"
        )
    left = [row_id for row_id in known if row_id not in answers]
    return Rater(path.stem, answers, left)


def _read_cells(path: Path) -> list[tuple[int, str, str]]:
    """Line in a spreadsheet, id and answer of every row that is not empty."""
    # Ids and answers are ASCII, so that a sheet saved in another code page is as good.
    text = path.read_bytes().decode("utf-8-sig", "replace")
    header = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({first_line(error)}); save it as CSV") from None
    names = [name.strip().casefold() for name in rows[0]] if rows else []
    columns = [_column(path, names, name) for name in ("id", "answer")]
    found = []
    for line, row in enumerate(rows[1:], start=2):
        if any(part.strip() for part in row):
            row_id, answer = (row[column] if column < len(row) else "" for column in columns)
            found.append((line, row_id.strip(), answer))
    return found


def _column(path: Path, names: Sequence[str], name: str) -> int:
    if names.count(name) != 1:
        raise UserError(
            f"{path}: expected one column {name!r}, found columns {', '.join(names) or 'none'}; "
            "save the sheet as CSV with its first row"
        )
    return names.index(name)
