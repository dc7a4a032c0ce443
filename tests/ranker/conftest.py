"""A small dataset folder, made here so that the tests of the ranker need no other stage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from shielded_recrl.files import write_json

INTERACTIONS = {
    "user": pl.Int32,
    "item": pl.Int32,
    "timestamp": pl.Int64,
    "order": pl.Int32,
    "weight": pl.Float32,
}


def write_dataset(folder: Path, sequences: list[dict[str, list[int]]], n_items: int) -> Path:
    """Write the parquet files of a dataset.

    Args:
        folder: where to; made if need be.
        sequences: for users 1, 2, ...: split -> item ids in order.
        n_items: items of the catalogue.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = {split: [] for split in ("train", "valid", "test")}
    for user, parts in enumerate(sequences, start=1):
        order = 0
        for split in rows:
            for item in parts.get(split, []):
                rows[split].append((user, item, 1000 * order, order, 1.0))
                order += 1
    for split, values in rows.items():
        frame = pl.DataFrame(values, schema=INTERACTIONS, orient="row")
        frame.write_parquet(folder / f"{split}.parquet")
    pl.DataFrame({"item": range(1, n_items + 1)}, schema={"item": pl.Int32}).write_parquet(
        folder / "items.parquet"
    )
    pl.DataFrame({"user": range(1, len(sequences) + 1)}, schema={"user": pl.Int32}).write_parquet(
        folder / "users.parquet"
    )
    write_json(
        folder / "stats.json",
        {
            "dataset": "series",
            "synthetic": True,
            "sequential": True,
            "settings": {"split": "per_user"},
            "rows_read": sum(map(len, rows.values())),
        },
    )
    return folder


def series_world(users: int, items: int, length: int, seed: int) -> list[dict[str, list[int]]]:
    """Users who mostly take the next new item of a series of five, and else a popular one."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, items + 1) ** 0.3
    world = []
    for _ in range(users):
        row, left = [], popularity.copy()
        while len(row) < length:
            following = row[-1] + 1 if row and row[-1] % 5 else 0
            follow = following and following not in row and rng.random() < 0.7
            item = following if follow else int(rng.choice(items, p=left / left.sum())) + 1
            left[item - 1] = 0
            row.append(item)
        cut = length // 10
        world.append({"train": row[: -2 * cut], "valid": row[-2 * cut : -cut], "test": row[-cut:]})
    return world


@pytest.fixture
def dataset(tmp_path) -> Callable[..., Path]:
    """Build a dataset folder; see `write_dataset`."""

    def build(sequences, n_items, name="data") -> Path:
        return write_dataset(tmp_path / name, sequences, n_items)

    return build


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """150 users, 100 items, 20 interactions each, with order worth learning."""
    return write_dataset(tmp_path_factory.mktemp("world"), series_world(150, 100, 20, 0), 100)
