"""A clean run with its dataset: harmless texts, the same lists before and after, ids to leak."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from shielded_recrl.files import read_jsonl, write_jsonl

LAST = 24
USERS = 30
ITEMS = 20
DESCRIPTION = (
    "A retired lighthouse keeper finds a map of seven drowned villages and sets out to sea"
)


@dataclass(frozen=True)
class AuditCase:
    """The three inputs of `audit run`, with ways to plant a fault."""

    data: Path
    explanations: Path
    rankings: Path
    users: int = USERS
    last: int = LAST
    description: str = DESCRIPTION

    def plant_text(self, text: str, user: int = 3, step: int = LAST) -> None:
        """Replace the text that one user got."""
        rows = read_jsonl(self.explanations)
        for row in rows:
            if row["step"] == step and row["user"] == user and row["position"] == 1:
                row["text"] = text
        write_jsonl(self.explanations, rows)

    def plant_lists(self, lists: list[list[int]]) -> None:
        """Replace the lists served after training, one for each user."""
        before = pl.read_parquet(self.rankings).filter(pl.col("step") == 0)
        pl.concat([before, _rankings(LAST, lists)]).write_parquet(self.rankings)


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


@pytest.fixture
def case(tmp_path) -> AuditCase:
    """Thirty users, twenty items; item i is the i-th most popular."""
    data = tmp_path / "data" / "books"
    data.mkdir(parents=True)
    pl.DataFrame(
        {
            "item": range(1, ITEMS + 1),
            "source_id": [f"B{i:09d}" for i in range(1, ITEMS + 1)],
            "title": [f"The Quiet Harbour, part {i}" for i in range(1, ITEMS + 1)],
            "text": [DESCRIPTION if i == 1 else f"Story {i}, set in 1984" for i in range(1, 21)],
            "categories": [["Fiction"]] * ITEMS,
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
    texts = [
        {
            "step": step,
            "user": user,
            "item": item,
            "position": position,
            "title": f"The Quiet Harbour, part {item}",
            "categories": ["Fiction"],
            "history": ["The Quiet Harbour, part 2"],
            "text": f"You liked part 2, and part {item} has the same calm sea and old friends.",
            "quality": 0.5,
            "propensity": 0.3,
        }
        for step in (0, LAST)
        for user in range(1, USERS + 1)
        for position, item in ((1, 1 + user % ITEMS), (2, 1 + (user + 7) % ITEMS))
    ]
    write_jsonl(tmp_path / "explanations.jsonl", texts)
    lists = [[1 + (user + shift) % ITEMS for shift in range(10)] for user in range(1, USERS + 1)]
    pl.concat([_rankings(0, lists), _rankings(LAST, lists)]).write_parquet(
        tmp_path / "rankings.parquet"
    )
    return AuditCase(data, tmp_path / "explanations.jsonl", tmp_path / "rankings.parquet")
