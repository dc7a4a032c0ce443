"""Draw a blinded sheet of pairs of explanations.

In: folders of two or more evaluated runs. Out: sheet.csv to fill in, sheet.html to print or to read
beside it, and a key kept apart. Sheets tell neither system nor kind of a row; the key tells all.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from shielded_recrl.errors import UserError
from shielded_recrl.files import write_json, write_text
from shielded_recrl.markdown import plain
from shielded_recrl.report.human import pairs
from shielded_recrl.report.human.key import ANSWERS, Key, Row
from shielded_recrl.report.human.settings import SheetSettings

COLUMNS = ("row", "id", "history", "recommended", "left", "right", "answer", "comment")
# What makes a spreadsheet take a cell for a formula, its full-width forms included.
FORMULA = tuple("=+-@＝＋－＠")
NO_TEXT = "(no text)"

# The policy keeps a browser from loading anything, whatever a title or a text should say.
TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Which explanation is better?</title>
<style>
@page { size: A4 landscape; margin: 12mm; }
body { font: 14px/1.4 system-ui, sans-serif; color: #111; max-width: 80rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { border: 1px solid #777; padding: .4rem .5rem; text-align: start; vertical-align: top;
  overflow-wrap: anywhere; }
th { background: #eee; }
tr { break-inside: avoid; }
thead { display: table-header-group; }
ul { margin: 0; padding-inline-start: 1.1rem; }
.row { width: 5rem; } .history { width: 17%; } .item { width: 14%; } .answer { width: 4.5rem; }
.comment { width: 12%; }
.id { font-family: monospace; }
.categories { color: #444; }
.box { white-space: nowrap; }
@media print { body { font-size: 10pt; margin: 0; padding: 0; max-width: none; } }
</style>
</head>
<body>
<h1>{{ question }}</h1>
<p>Each row shows what a person liked before, an item recommended to that person, and two
explanations of the recommendation. Read both, then mark <em>left</em>, <em>right</em>, or
<em>tie</em> where neither is better. Answer every row by itself, in order; do not go back. Type the
answers into the column <em>answer</em> of the table that came with this page; a comment is
welcome, and not needed.</p>
<table>
<thead><tr><th class="row">row</th><th class="history">liked before</th>
<th class="item">recommended</th><th>left</th>
<th>right</th><th class="answer">answer</th><th class="comment">comment</th></tr></thead>
<tbody>
{% for row in rows -%}
<tr>
<td>{{ loop.index }}<br><span class="id">{{ row.id }}</span></td>
<td><ul>{% for title in row.history %}<li dir="auto">{{ title|plain }}</li>{% endfor %}</ul></td>
<td dir="auto"><strong>{{ row.title|plain }}</strong>
{%- if row.categories %}<br><span class="categories">{{ row.categories|join(", ")|plain }}</span>
{%- endif %}</td>
<td dir="auto">{{ row.left_text|shown }}</td>
<td dir="auto">{{ row.right_text|shown }}</td>
<td>{% for answer in answers %}<div class="box">&#9744; {{ answer }}</div>{% endfor %}</td>
<td></td>
</tr>
{% endfor -%}
</tbody>
</table>
</body>
</html>
"""


def main(
    *,
    runs: tuple[Path, ...],
    out: Path,
    key: Path,
    settings: Annotated[SheetSettings, tyro.conf.arg(name="")],
    seed: int = 42,
) -> None:
    """Draw a blinded sheet of pairs, and its key.

    Args:
        runs: folders of evaluated runs, of one dataset or several.
        out: folder to write sheet.csv and sheet.html to; give all of it to the raters.
        key: JSON file to write the key to, outside of `out`; keep it from the raters.
        settings: what is compared, and sizes.
        seed: of every draw.
    """
    if out.resolve() in key.resolve().parents:
        raise UserError(
            f"{key}: lies in {out}, which goes to the raters; give --key a path outside of it"
        )
    written = pairs.read_written(runs, settings.compare)
    pools = pairs.comparisons(written)
    rows = pairs.draw(pools, written, settings, seed)
    made = Key(
        seed=seed,
        compare=settings.compare,
        question=settings.question,
        comparisons=list(pools),
        rows=rows,
    )
    # The key comes first: a sheet without one is worth nothing.
    write_json(key, made.model_dump())
    write_text(out / "sheet.csv", to_csv(rows))
    write_text(out / "sheet.html", to_html(rows, settings.question))
    count = Counter(row.kind for row in rows)
    fewer = "" if count["pair"] == settings.pairs else f" ({settings.pairs} were asked for)"
    print(
        f"{out}: pairs {count['pair']}{fewer}, repeats {count['repeat']}, attention checks "
        f"{count['check']}, comparisons {len(pools)}; key: {key}"
    )


def to_csv(rows: Sequence[Row]) -> str:
    """The sheet as CSV with a byte order mark, by which spreadsheets know UTF-8.

    Every cell is quoted, and one that begins like a formula is given an apostrophe: a title can
    neither open a cell of its own nor make the rater's spreadsheet compute.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for number, row in enumerate(rows, start=1):
        cells = (
            str(number),
            row.id,
            " | ".join(map(plain, row.history)),
            recommended(row),
            shown(row.left_text),
            shown(row.right_text),
            "",
            "",
        )
        writer.writerow([cell(text) for text in cells])
    return "\ufeff" + stream.getvalue()


def to_html(rows: Sequence[Row], question: str) -> str:
    """The sheet as one page of HTML that loads nothing and runs nothing."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"plain": plain, "shown": shown}
    template = environment.from_string(TEMPLATE)
    return template.render(rows=rows, question=question, answers=ANSWERS) + "\n"


def recommended(row: Row) -> str:
    """The item of a row in words.

    >>> recommended(Row.model_construct(title="Dune", categories=["Novel", "Desert"]))
    'Dune (Novel, Desert)'
    """
    kinds = f" ({', '.join(row.categories)})" if row.categories else ""
    return plain(row.title + kinds)


def shown(text: str) -> str:
    """An explanation as a rater sees it; an empty cell would look like a fault of the sheet."""
    return plain(text) or NO_TEXT


def cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula.

    >>> cell("=1+1"), cell("one = 1")
    ("'=1+1", 'one = 1')
    """
    whole = plain(text)
    return f"'{whole}" if whole.startswith(FORMULA) else whole
