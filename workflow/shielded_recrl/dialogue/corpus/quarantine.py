"""What is kept out of the tables, and why.

In: rows that cannot be read. Out: their counts by file and reason, and rows of quarantine.jsonl with
file, row (from 1), conversation, reason and detail.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from shielded_recrl.errors import UserError

# Characters of what is wrong with a row.
LENGTH = 200
# Reason of what is sound, but not new.
TWICE = "there twice"


class Damaged(Exception):
    """A dialogue that is kept out.

    Attributes:
        reason: what is wrong, in the few words that are counted.
        detail: where.
        conversation: its id, if it has a readable one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail
        self.conversation: str | None = None


class Quarantine:
    """Rows that are kept out.

    Attributes:
        rows: rows of quarantine.jsonl.
        counts: file -> reason -> number of rows.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)

    def add(
        self, file: str, row: int, reason: str, detail: str = "", conversation: str | None = None
    ) -> None:
        """Put a row of a file aside."""
        self.counts[file][reason] += 1
        self.rows.append(
            {
                "file": file,
                "row": row,
                "conversation": conversation and conversation[:LENGTH],
                "reason": reason,
                "detail": " ".join(detail[:LENGTH].split()),
            }
        )

    def refuse(self, file: str, read: int, max_share: float, expected: str) -> None:
        """Refuse a file of which too much is bad.

        Raises:
            UserError: more than `max_share` of its `read` rows are here, or it has no rows.
        """
        if not read:
            raise UserError(f"{file}: no rows; expected {expected}")
        reasons = {why: count for why, count in self.counts[file].items() if why != TWICE}
        if (bad := sum(reasons.values())) > max_share * read:
            counted = ", ".join(f"{why}: {count}" for why, count in sorted(reasons.items()))
            first = next(
                row for row in self.rows if row["file"] == file and row["reason"] in reasons
            )
            raise UserError(
                f"{file}: {bad} of {read} rows are damaged ({counted}), first row {first['row']}: "
                f"{first['reason']} ({first['detail']}); expected {expected}; mend the file or raise "
                f"dialogue.data.max_bad_share ({max_share})"
            )
