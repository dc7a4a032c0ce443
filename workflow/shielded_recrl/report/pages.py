"""Pages of the report: Markdown turned into HTML files that work offline, by themselves.

In: Markdown files, whose own HTML is shown as text and never run, and the images beside them. Out:
an HTML file for each, with its style and images in it and nothing to fetch.
"""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from shielded_recrl.errors import UserError
from shielded_recrl.files import write_text

if TYPE_CHECKING:
    from markdown_it.token import Token

# Whatever a page says, it can fetch and run nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
IMAGES = {".png": "image/png", ".svg": "image/svg+xml"}
STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --good: #1a7f37; --bad: #cf222e; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d444d; --soft: #151b23; --good: #3fb950; --bad: #f85149; }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 76rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 0.35rem 0.7rem; text-align: left;
  vertical-align: top; }
img { max-width: 100%; background: #fff; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figcaption { font-size: 0.87rem; max-width: 50rem; }
/* What is drawn or in columns must be legible: on a narrow screen it is wider than that, and moves. */
@media (max-width: 40rem) {
  figure img { max-width: none; width: 36rem; }
  table { width: max-content; } th, td { max-width: 14rem; }
}
th { background: var(--soft); position: sticky; top: 0; }
tbody tr:hover { background: var(--soft); }
code { background: var(--soft); padding: 0.1em 0.3em; border-radius: 4px; }
blockquote { border-left: 3px solid var(--line); margin-left: 0; padding-left: 1rem; }
td.met { color: var(--good); font-weight: 600; } td.failed { color: var(--bad); font-weight: 600; }
"""
# An image that opens its paragraph; what follows on the next line is its caption.
FIGURE = re.compile(r"<p>(<img [^>]*>)(?:\n(.*?))?</p>", re.DOTALL)
# Cells that are verdicts, by what they say.
VERDICTS = {"met": "met", "holds": "met", "failed": "failed", "broken": "failed"}


def main(*, sources: tuple[Path, ...], outs: tuple[Path, ...]) -> None:
    """Turn Markdown pages into self-contained HTML files.

    Args:
        sources: Markdown files.
        outs: HTML files to write, one for each source, in equal order.
    """
    if len(sources) != len(outs):
        raise UserError(
            f"--outs: {len(outs)} files for {len(sources)} --sources; name one for each"
        )
    pages = [document(_read(source), source.parent) for source in sources]
    for out, page in zip(outs, pages, strict=True):
        write_text(out, page)
    print(f"{len(outs)} pages: {', '.join(map(str, outs))}")


def document(markdown: str, folder: Path) -> str:
    """A whole HTML document; its title is that of the page's first heading.

    Args:
        markdown: CommonMark with tables. HTML in it is shown, not run; links that would run a
            script are left out. A paragraph of an image, and of text on the lines after it, is a
            figure with that caption. `[text](#heading)` leads to a heading, by its name on GitHub.
        folder: of the page. PNG and SVG images in it become part of the document; of all others
            only the description is left.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    anchors: Counter[str] = Counter()
    for token, inner in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(inner.content, anchors))
    for token in tokens:
        for child in token.children or []:
            if child.type == "image":
                _embed(child, folder)
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="table"><table>').replace(
        "</table>", "</table></div>"
    )
    body = body.replace("<th>", '<th scope="col">')
    body = re.sub(r"<td>(\w+)</td>", _verdict, body)
    body = FIGURE.sub(_figure, body)
    heading = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    title = html.escape(heading[1] if heading else "Report")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _embed(image: Token, folder: Path) -> None:
    """Put an image into its document, or its description in its place."""
    name = str(image.attrs["src"])
    path = folder / name
    # A name with a folder or an address in it is no file beside the page.
    if Path(name).name == name and path.suffix in IMAGES and path.is_file():
        data = base64.b64encode(path.read_bytes()).decode()
        image.attrSet("src", f"data:{IMAGES[path.suffix]};base64,{data}")
    else:
        image.type = "text"


def anchor(heading: str, taken: Counter[str]) -> str:
    """What a link to a heading names, as on GitHub: the words with hyphens, the second time `-1`.

    >>> taken = Counter()
    >>> anchor("Seed 42: `unseen`", taken), anchor("Seed 42, unseen", taken)
    ('seed-42-unseen', 'seed-42-unseen-1')
    """
    name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    taken[name] += 1
    return f"{name}-{taken[name] - 1}" if taken[name] > 1 else name


def _figure(found: re.Match[str]) -> str:
    image, caption = found.groups()
    below = f"\n<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{image}{below}</figure>"


def _verdict(cell: re.Match[str]) -> str:
    kind = VERDICTS.get(cell[1])
    return f'<td class="{kind}">{cell[1]}</td>' if kind else cell[0]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable page ({error}); make it again") from error
