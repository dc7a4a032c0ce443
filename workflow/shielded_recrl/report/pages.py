"""Pages of the report: Markdown turned into HTML files that work offline, by themselves.

In: Markdown files, whose own HTML is shown as text and never run, and the images beside them. Out:
an HTML file for each, with its style and images in it and nothing to fetch.
"""

from __future__ import annotations

import base64
import html
import re
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
th { background: var(--soft); position: sticky; top: 0; }
tbody tr:hover { background: var(--soft); }
code { background: var(--soft); padding: 0.1em 0.3em; border-radius: 4px; }
blockquote { border-left: 3px solid var(--line); margin-left: 0; padding-left: 1rem; }
td.met { color: var(--good); font-weight: 600; } td.failed { color: var(--bad); font-weight: 600; }
"""
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
            script are left out.
        folder: of the page. PNG and SVG images in it become part of the document; of all others
            only the description is left.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    for token in tokens:
        for child in token.children or []:
            if child.type == "image":
                _embed(child, folder)
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="table"><table>').replace(
        "</table>", "</table></div>"
    )
    body = re.sub(r"<td>(\w+)</td>", _verdict, body)
    heading = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    title = html.escape(heading[1] if heading else "Report")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
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


def _verdict(cell: re.Match[str]) -> str:
    kind = VERDICTS.get(cell[1])
    return f'<td class="{kind}">{cell[1]}</td>' if kind else cell[0]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable page ({error}); make it again") from error
