"""Text and tables in Markdown pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def in_cell(text: str) -> str:
    """Text that stays inside its table cell and is no markup, on one line.

    >>> in_cell("a | b\\n <c>")
    'a &#124; b &lt;c>'
    """
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace("|", "&#124;").replace("`", "&#96;")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; cells stand as they are, see `in_cell` for text that is not one's own."""
    ruled = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in ruled]
