"""Evaluated runs as far as the human study reads them, and raters who answer by a rule."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shielded_recrl.files import write_json, write_jsonl
from shielded_recrl.report.human.key import Answer, Key, Row

STYLES = {
    "before": "You may like {title} as much as {count} others did before you.",
    "shielded": "{title} shares its mood with {past}, which you finished {count} times.",
    "no_proj": "Everyone who reads {past} goes on to {title} after {count} days.",
    "kl0": "Try {title} tonight; it took {count} prizes and suits a quiet evening.",
}


def write_run(
    root: Path,
    variant: str,
    seed: int = 42,
    dataset: str = "books",
    users: int = 20,
    items: int = 3,
    change: Callable[[dict], dict] = lambda row: row,
) -> Path:
    """Write a run; every system has a style of text of its own.

    Args:
        root: folder to write below.
        variant: a key of `STYLES`.
        seed: of the run.
        dataset: of the run.
        users: users explained to.
        items: items explained to each.
        change: what becomes of each row of explanations.jsonl.
    """
    folder = root / dataset / variant / f"seed-{seed}"
    write_json(
        folder / "evaluation.json",
        {"dataset": dataset, "variant": variant, "seed": seed, "kl": 0.1},
    )
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(1, users + 1):
        history = [f"Tale {user}-{place}" for place in range(3)]
        for position in range(1, items + 1):
            item = 100 * user + position
            count = int(rng.integers(2, 1000))
            for step, style in ((0, "before"), (8, variant), (16, variant)):
                title = f"Novel {item}"
                text = STYLES[style].format(title=title, past=history[0], count=count + step)
                rows.append(
                    {
                        "step": step,
                        "user": user,
                        "item": item,
                        "position": position,
                        "title": title,
                        "categories": ["Drama", "War"],
                        "history": history,
                        "text": text,
                        "quality": float(rng.random()),
                        "propensity": 0.3,
                    }
                )
    write_jsonl(folder / "explanations.jsonl", map(change, rows))
    return folder


def preferring(order: list[str]) -> Callable[[Row], Answer]:
    """A rater who passes every check and likes the system that comes first in `order`."""

    def answer(row: Row) -> Answer:
        if row.sound:
            return row.sound
        return "left" if order.index(row.left) < order.index(row.right) else "right"

    return answer


def fill(sheet: Path, key: Key, answer: Callable[[Row], str], out: Path) -> Path:
    """Fill in a copy of a sheet, as a rater would who knows the key."""
    by_id = {row.id: row for row in key.rows}
    rows = list(csv.DictReader(io.StringIO(sheet.read_text(encoding="utf-8-sig"), newline="")))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0].keys())
    writer.writeheader()
    writer.writerows(row | {"answer": answer(by_id[row["id"]])} for row in rows)
    out.write_text(stream.getvalue(), encoding="utf-8", newline="")
    return out
