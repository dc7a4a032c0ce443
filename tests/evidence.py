"""What an evaluated run holds of its texts and users, as `rl evaluate` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from shielded_recrl.files import read_json, sha256, write_json, write_jsonl
from shielded_recrl.report.columns import COLUMNS

LAST = 24
TEXT = ("clicks", "clicks_examination", "quality")
# user, item, position -> the figures `TEXT` of a text.
Texts = dict[tuple[int, int, int], tuple[float, float, float]]


def write_outcomes(
    folder: Path,
    texts: Texts,
    changes: dict[int, float | None],
    *,
    changed: frozenset[int] = frozenset(),
    before: Texts | None = None,
) -> Path:
    """Write explanations.jsonl, users.parquet and rankings.parquet of a run.

    Args:
        folder: of the run.
        texts: after training.
        changes: what NDCG@10 changed by for each held-out user; None where it is undefined. User 900
            is protected, and changed by 9.
        changed: held-out users whose list changed, by the order of its items alone.
        before: texts before training; by default of the same figures.
    """
    write_jsonl(
        folder / "explanations.jsonl",
        [
            {
                **{"step": step, "user": user, "item": item, "position": position},
                **dict(zip(TEXT, figures, strict=True)),
                **{"title": f"Title {item}", "categories": ["Drama"], "history": ["Past"]},
                **{"text": f"Text {item} at {step}.", "propensity": figures[0]},
                "quality_examination": figures[2],
            }
            for step, some in ((0, before or texts), (LAST, texts))
            for (user, item, position), figures in some.items()
        ],
    )
    people = {**changes, 900: 9.0}
    pl.DataFrame(
        {
            "user": pl.Series(list(people), dtype=pl.Int32),
            "role": ["heldout"] * len(changes) + ["protected"],
            "ndcg_before": pl.Series([0.5] * len(people), dtype=pl.Float64),
            "ndcg_after": pl.Series(
                [None if change is None else 0.5 + change for change in people.values()],
                dtype=pl.Float64,
            ),
            "hr_before": pl.Series([1.0] * len(people), dtype=pl.Float64),
            "hr_after": pl.Series([1.0] * len(people), dtype=pl.Float64),
        }
    ).write_parquet(folder / "users.parquet")
    ranked = [
        (step, role, user, position, (11 - position) if step and user in changed else position)
        for step in (0, LAST)
        for user, role in ((user, "heldout") for user in changes)
        for position in range(1, 11)
    ]
    schema = {"step": pl.Int32, "role": pl.String, "user": pl.Int32}
    schema |= {"position": pl.Int32, "item": pl.Int32}
    pl.DataFrame(ranked, schema=schema, orient="row").write_parquet(folder / "rankings.parquet")
    return folder


def reaudit(folder: Path, audit: Path) -> None:
    """Let an audit be of the texts and lists that a run has now.

    Figures of the table that neither evaluation nor audit has yet are filled in.
    """
    documents = {"evaluation": folder / "evaluation.json", "audit": audit}
    for name, path in documents.items():
        document = read_json(path)
        for column in COLUMNS:
            if isinstance(column.source, str) and column.source.startswith(f"{name}."):
                _fill(document, column.source.split(".")[1:])
        if name == "audit":
            files = {"explanations": "explanations.jsonl", "rankings": "rankings.parquet"}
            document["inputs"] |= {key: sha256(folder / file) for key, file in files.items()}
        write_json(path, document)


def _fill(document: dict[str, Any], keys: list[str]) -> None:
    for key in keys[:-1]:
        if not isinstance(document.get(key), dict):
            document[key] = {}
        document = document[key]
    document.setdefault(keys[-1], 0.1)
