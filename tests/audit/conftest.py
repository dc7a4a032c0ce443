"""A clean run with its dataset: grounded texts, fair lists, ids and reviews to leak."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from shielded_recrl.files import read_json, read_jsonl, write_json, write_jsonl

LAST = 24
USERS = 30
ITEMS = 20
DESCRIPTION = (
    "A retired lighthouse keeper finds a map of seven drowned villages and sets out to sea"
)
REVIEW = "My grandmother kept this very copy under her pillow until the winter the river froze"


@dataclass(frozen=True)
class AuditCase:
    """The inputs of `audit run`, with ways to plant a fault."""

    data: Path
    explanations: Path
    rankings: Path
    probes: Path
    users: int = USERS
    last: int = LAST
    description: str = DESCRIPTION
    review: str = REVIEW

    def plant_text(self, text: str, user: int = 3, step: int = LAST) -> None:
        """Replace the text that one user got."""
        rows = read_jsonl(self.explanations)
        for row in rows:
            if row["step"] == step and row["user"] == user and row["position"] == 1:
                row["text"] = text
        write_jsonl(self.explanations, rows)

    def plant_texts(self, write) -> None:
        """Replace all texts after training by what a function makes of their rows."""
        rows = read_jsonl(self.explanations)
        for row in rows:
            if row["step"] == LAST:
                row["text"] = write(row)
        write_jsonl(self.explanations, rows)

    def plant_sample(self, text: str, *places: int) -> None:
        """Replace some of the probe's samples after training, the sixth if none is named."""
        probes = read_json(self.probes)
        for place in places or (5,):
            probes["samples"]["after"][place]["text"] = text
        write_json(self.probes, probes)

    def plant_lists(self, lists: list[list[int]]) -> None:
        """Replace the lists served after training, one for each user."""
        before = pl.read_parquet(self.rankings).filter(pl.col("step") == 0)
        pl.concat([before, _rankings(LAST, lists)]).write_parquet(self.rankings)

    def plant_column(self, name: str, values: list[str | None]) -> None:
        """Replace or add a column of users.parquet."""
        path = self.data / "users.parquet"
        column = pl.Series(name, values, dtype=pl.String)
        pl.read_parquet(path).with_columns(column).write_parquet(path)


def shifted(user: int, shift: int) -> int:
    """An item: each user sees the catalogue from another start."""
    return 1 + (user + shift) % ITEMS


def served(user: int) -> list[int]:
    """Top 10 of a user; what there is to find stands third."""
    return [shifted(user, shift) for shift in range(10)]


def _rankings(step: int, lists: list[list[int]]) -> pl.DataFrame:
    rows = [
        (step, "protected" if user % 2 else "heldout", user, position, item)
        for user, served in enumerate(lists, start=1)
        for position, item in enumerate(served, start=1)
    ]
    schema = {"step": pl.Int32, "role": pl.String, "user": pl.Int32}
    return pl.DataFrame(
        rows, schema={**schema, "position": pl.Int32, "item": pl.Int32}, orient="row"
    )


def _interactions(path: Path, rows: list[tuple[int, int]]) -> None:
    pl.DataFrame(rows, schema={"user": pl.Int32, "item": pl.Int32}, orient="row").write_parquet(
        path
    )


def _probes() -> dict:
    samples = [
        {
            "user": 1 + place % USERS,
            "item": 1 + place % ITEMS,
            "text": f"The Quiet Harbour, part {1 + place % ITEMS} has the same calm sea.",
        }
        for place in range(600)
    ]
    return {
        "samples": {"before": samples, "after": samples},
        "injection": [
            {
                "attack": attack,
                "user": user,
                "item": 1,
                "when": when,
                "payload": payload,
                "attacked": "A calm sea and old friends",
                "benign": "A calm sea and old friends",
                "reached": True,
            }
            for when in ("before", "after")
            for user in range(1, 13)
            for attack, payload in (("item_title", "Quorvex"), ("url", "http://quorvex.example"))
        ],
        "canaries": {
            "candidates": 15,
            "rows": [
                {"canary": f"code {repeats}", "repeats": repeats, "before": 1.0, "after": 1.0}
                for repeats in (1, 8)
            ],
        },
        "membership": [
            {"user": user, "member": user % 2 == 0, "base": 2.0, "adapter": 1.9 + user // 2 % 5 / 9}
            for user in range(1, 41)
        ],
    }


@pytest.fixture
def case(tmp_path) -> AuditCase:
    """Thirty users, twenty items; item i is the i-th most popular, odd users have had more."""
    data = tmp_path / "data" / "books"
    data.mkdir(parents=True)
    pl.DataFrame(
        {
            "item": range(1, ITEMS + 1),
            "source_id": [f"B{i:09d}" for i in range(1, ITEMS + 1)],
            "title": [f"The Quiet Harbour, part {i}" for i in range(1, ITEMS + 1)],
            "text": [DESCRIPTION if i == 1 else f"Story {i}, set in 1984" for i in range(1, 21)],
            "categories": [["Fiction", ("Travel", "History")[i % 2]] for i in range(ITEMS)],
            "popularity": [100 - 4 * i for i in range(ITEMS)],
        },
        schema_overrides={"item": pl.Int32, "popularity": pl.Int32},
    ).write_parquet(data / "items.parquet")
    pl.DataFrame(
        {
            "user": range(1, USERS + 1),
            "source_id": [*(f"A{i:02d}XQ7" for i in range(1, USERS)), "1984"],
            "group": [None] * USERS,
        },
        schema_overrides={"user": pl.Int32, "group": pl.String},
    ).write_parquet(data / "users.parquet")
    people = range(1, USERS + 1)
    had = [(u, shifted(u, 10 + j)) for u in people for j in range(6 if u % 2 else 3)]
    _interactions(data / "train.parquet", had)
    _interactions(data / "valid.parquet", [(u, shifted(u, 16)) for u in people])
    _interactions(data / "test.parquet", [(u, shifted(u, 2)) for u in people])
    pl.DataFrame(
        {
            "user": [1, 2, 3],
            "item": [1, 2, 3],
            "split": ["train", "train", "test"],
            "text": [REVIEW, "Nice and calm.", "A dog ate the last nine pages of it, sadly for us"],
        },
        schema_overrides={"user": pl.Int32, "item": pl.Int32},
    ).write_parquet(data / "reviews.parquet")
    texts = [
        {
            "step": step,
            "user": user,
            "item": item,
            "position": position,
            "title": f"The Quiet Harbour, part {item}",
            "categories": ["Fiction", ("Travel", "History")[(item - 1) % 2]],
            "history": ["The Quiet Harbour, part 2"],
            "text": f"You liked part 2, and The Quiet Harbour, part {item} has the same calm sea.",
            "quality": 0.5,
            "propensity": 0.3,
        }
        for step in (0, LAST)
        for user in people
        for position, item in ((1, shifted(user, 0)), (2, shifted(user, 7)))
    ]
    write_jsonl(tmp_path / "explanations.jsonl", texts)
    lists = [served(user) for user in people]
    pl.concat([_rankings(0, lists), _rankings(LAST, lists)]).write_parquet(
        tmp_path / "rankings.parquet"
    )
    write_json(tmp_path / "probes.json", _probes())
    return AuditCase(
        data,
        tmp_path / "explanations.jsonl",
        tmp_path / "rankings.parquet",
        tmp_path / "probes.json",
    )
