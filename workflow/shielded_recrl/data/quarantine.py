"""Rows that could not be read, kept for inspection.

In: the file, line and reason of each bad row. Out: JSON lines with

    file    path of the raw file; a member of an archive is `archive.zip/member`
    line    line number in it, from 1, a header counted
    reason  why the row was refused
    text    the line, cut to 200 characters; bytes that are no UTF-8 became U+FFFD

in the order of reading: file after file, each by line. Without bad rows the file is empty.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self

from shielded_recrl.files import atomic

LENGTH = 200
SHOWN = 3


class Quarantine:
    """Collects bad rows, and writes them when its block ends without an error.

    Attributes:
        counts: file -> reason -> number of rows.
    """

    def __init__(self, path: Path) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._path = Path(path)
        self._first: dict[str, list[str]] = defaultdict(list)

    def add(self, file: str, line: int, reason: str, text: str) -> None:
        """Put one row of a file aside.

        Args:
            file: path of the raw file.
            line: its line number, from 1.
            reason: why it was refused, in a few words.
            text: the line itself; bytes that are no UTF-8 may be surrogate escapes.
        """
        self.counts[file][reason] += 1
        if len(self._first[file]) < SHOWN:
            self._first[file].append(f"line {line}: {reason}")
        text = text[:LENGTH].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        row = {"file": file, "line": line, "reason": reason, "text": text.rstrip("\r\n")}
        self._rows.write(json.dumps(row) + "\n")

    def first(self, file: str) -> str:
        """The first bad lines of a file in words, for a message of one line."""
        return "; ".join(self._first[file])

    def __enter__(self) -> Self:
        # On disk, and without a name: any number of bad rows, and nothing left behind.
        self._rows = tempfile.TemporaryFile("w+", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._rows:
            if kind is None:
                self._rows.seek(0)
                with atomic(self._path) as partial, partial.open("w", encoding="utf-8") as target:
                    shutil.copyfileobj(self._rows, target)
