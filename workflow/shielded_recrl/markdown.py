"""Text and tables in pages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

# What opens markup wherever it stands. An underscore within a word opens none (CommonMark 0.31.2,
# section 6.2), and names that are shown as code, where entities are not read, hold such.
MARKUP = re.compile(r"[&<|`\\*\[\]~#]|(?<![^\W_])_|_(?![^\W_])")
NAMED = {"&": "&amp;", "<": "&lt;"}


def in_cell(text: str) -> str:
    """Text that stays inside its table cell and is no markup, on one line.

    >>> in_cell("a | b\\n <c>")
    'a &#124; b &lt;c>'
    >>> in_cell("![x](https://host/x.png) of no_proj")
    '!&#91;x&#93;(https://host/x.png) of no_proj'
    """
    return MARKUP.sub(_entity, " ".join(text.split()))


def plain(text: str) -> str:
    """Text on one line, without control characters and broken code points.

    >>> plain("two\\n lines\\x07")
    'two lines'
    """
    whole = text.encode("utf-8", "replace").decode("utf-8")
    kept = (char for char in whole if char.isspace() or unicodedata.category(char) != "Cc")
    return " ".join("".join(kept).split())


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a table; cells stand as they are, see `in_cell` for text that is not one's own.

    >>> table(["a", ""], [["b", 2]])
    ['| a | |', '|---|---|', '| b | 2 |']
    """
    header = list(header)
    return [_row(header), "|" + "---|" * len(header), *map(_row, rows)]


def _row(cells: Iterable[Any]) -> str:
    return "|" + "".join(f" {cell}".rstrip() + " |" for cell in cells)


def _entity(char: re.Match[str]) -> str:
    return NAMED.get(char[0], f"&#{ord(char[0])};")
