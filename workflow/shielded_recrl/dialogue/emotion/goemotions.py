"""Comments with emotions, in the format of GoEmotions.

In: train, dev and test as `.tsv` or `.tsv.gz`: text, numbers of labels with commas between, id; no
header, no quoting. Out: texts and which of the nine emotions each shows. Damaged lines are counted
and kept out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shielded_recrl.data.archive import byte_lines
from shielded_recrl.dialogue.emotion.labels import EMOTIONS, GOEMOTIONS, emotions_of
from shielded_recrl.errors import UserError

# Comments of GoEmotions stay below 1,000.
MAX_TEXT = 20_000
NUMBERS = {str(number): number for number in range(len(GOEMOTIONS))}
EXPECTED = "a text, numbers of labels from 0 to 27 and an id, tabs between"


class Comments(NamedTuple):
    """Comments of one file.

    Attributes:
        texts: as written.
        shown: bool [n, 9], which emotions each shows: one at least.
        damaged: reason -> number of lines kept out.
    """

    texts: list[str]
    shown: np.ndarray
    damaged: Counter[str]

    @property
    def targets(self) -> np.ndarray:
        """Shares [n, 9] of the emotions of a comment: equal ones, in sum 1."""
        return self.shown / self.shown.sum(axis=1, keepdims=True)

    @property
    def single(self) -> np.ndarray:
        """Which comments [n] show one emotion only."""
        return self.shown.sum(axis=1) == 1


def comments_file(folder: Path, part: str) -> Path:
    """The file of a part, plain or compressed.

    Raises:
        UserError: there is none, or there are both.
    """
    paths = [Path(folder) / f"{part}.tsv{ending}" for ending in ("", ".gz")]
    found = [path for path in paths if path.is_file()]
    if len(found) != 1:
        raise UserError(
            f"{folder}: {len(found)} files called {part}.tsv or {part}.tsv.gz, not one; expected "
            "the folder of GoEmotions with train, dev and test"
        )
    return found[0]


def read_comments(path: Path, max_bad_share: float) -> Comments:
    """Read a file of comments.

    Raises:
        UserError: it is no whole gzip file, holds no comment, or more than `max_bad_share` of its
            lines are damaged.
    """
    texts, shown, damaged, first = [], [], Counter(), 0
    for number, line in enumerate(byte_lines(path), start=1):
        comment = _parsed(line)
        if isinstance(comment, str):
            damaged[comment] += 1
            first = first or number
            continue
        texts.append(comment[0])
        shown.append(comment[1])
    bad = damaged.total()
    if bad > max_bad_share * (bad + len(texts)):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(damaged.items()))
        raise UserError(
            f"{path}: {bad} of {bad + len(texts)} lines are damaged ({reasons}), the first is line "
            f"{first}; expected {EXPECTED}; mend the file or raise "
            f"dialogue.emotions.max_bad_share ({max_bad_share})"
        )
    if not texts:
        raise UserError(f"{path}: no comments; expected lines of {EXPECTED}")
    return Comments(texts, np.array(shown).reshape(-1, len(EMOTIONS)), damaged)


def _parsed(line: bytes) -> tuple[str, np.ndarray] | str:
    """Text and emotions of a line, or what is wrong with it."""
    try:
        fields = line.decode("utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        return "no UTF-8 text"
    if len(fields) != 3:
        return "not three columns"
    text, labels = fields[0].strip(), fields[1].split(",")
    if not text:
        return "no text"
    if len(text) > MAX_TEXT:
        return "too long a text"
    if not all(label in NUMBERS for label in labels):
        return "unknown label"
    return text, emotions_of(NUMBERS[label] for label in labels)
