"""The datasets of a study on one page: what was read, what was dropped and why, what is left.

In: stats.json of each dataset. Out: a Markdown page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shielded_recrl.markdown import in_cell, table
from shielded_recrl.report.study import NAMES


def page(stats: Sequence[dict[str, Any]]) -> str:
    """The Markdown page.

    Args:
        stats: stats.json of each dataset, as `data prepare` writes it.
    """
    kept = [
        [
            _name(one),
            "embedded, synthetic" if one["synthetic"] else "the owner's files",
            "by time" if one["sequential"] else "none: split at random",
            *(f"{one[key]:,}" for key in ("rows_read", "kept", "users", "items")),
            f"{one['density']:.2%}",
            " / ".join(f"{one['splits'][part]:,}" for part in ("train", "valid", "test")),
        ]
        for one in stats
    ]
    dropped = [
        [_name(one), in_cell(reason), f"{rows:,}"]
        for one in stats
        for reason, rows in one["dropped"].items()
    ]
    sources = [
        [_name(one), in_cell(name), f"`{digest}`"]
        for one in stats
        for name, digest in one["inputs"].items()
    ]
    header = ["dataset", "source", "order", "rows read", "kept", "users", "items", "density"]
    return "\n".join(
        [
            "# Datasets\n",
            "Synthetic data shows that a measurement works, not that an idea does.\n",
            *table([*header, "train / valid / test"], kept),
            "\n## Rows dropped\n",
            *(table(["dataset", "why", "rows"], dropped) if dropped else ["None."]),
            "\n## What was read\n",
            *table(["dataset", "file", "SHA-256"], sources),
            "",
        ]
    )


def _name(stats: dict[str, Any]) -> str:
    return in_cell(f"{stats['dataset']} ({NAMES.get(stats['dataset'], stats['dataset'])})")
