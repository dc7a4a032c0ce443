"""A tiny dataset in the binding format and a model trained on it for a few steps."""

import random
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from shielded_recrl.explainer import pretrain
from shielded_recrl.explainer.settings import PretrainSettings, PromptSettings

SPLIT = {
    "user": pl.Int32,
    "item": pl.Int32,
    "timestamp": pl.Int64,
    "order": pl.Int32,
    "weight": pl.Float32,
}
ITEMS = {
    "item": pl.Int32,
    "source_id": pl.String,
    "title": pl.String,
    "text": pl.String,
    "categories": pl.List(pl.String),
    "popularity": pl.Int32,
}
# Items above it are in the test split only.
TRAIN_ITEMS = 24


def write_dataset(folder: Path, unseen: str = "Zyzzyva Quux") -> Path:
    """12 users with 8 train items each; the test items carry the title `unseen`."""
    rng = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = [], []
    for user in range(1, 13):
        for order, item in enumerate(rng.sample(range(1, TRAIN_ITEMS + 1), 8)):
            train.append((user, item, order, order, 1.0))
        test.append((user, TRAIN_ITEMS + 1 + user % 6, 9, 9, 1.0))
    categories = ["Mystery", "Travel", "Romance"]
    items = [
        (
            item,
            f"s{item}",
            f"Harbor Road {item}" if item <= TRAIN_ITEMS else f"{unseen} {item}",
            "",
            categories[: item % 4],
            1,
        )
        for item in range(1, TRAIN_ITEMS + 7)
    ]
    pl.DataFrame(train, schema=SPLIT, orient="row").write_parquet(folder / "train.parquet")
    pl.DataFrame(test, schema=SPLIT, orient="row").write_parquet(folder / "test.parquet")
    pl.DataFrame(items, schema=ITEMS, orient="row").write_parquet(folder / "items.parquet")
    return folder


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Path]:
    return write_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("explainer") / "data")


@pytest.fixture(scope="session")
def templates() -> Path:
    return Path(__file__).resolve().parents[2] / "resources" / "prompts"


@pytest.fixture(scope="session")
def prompt() -> PromptSettings:
    return PromptSettings(prompt_tokens=72, history_items=5)


@pytest.fixture(scope="session")
def tiny() -> PretrainSettings:
    return PretrainSettings(
        vocabulary=400, hidden_size=16, layers=1, heads=2, steps=4, batch_size=4
    )


@pytest.fixture(scope="session")
def base(dataset, templates, prompt, tiny, tmp_path_factory) -> Path:
    """A folder written by `explainer pretrain`."""
    out = tmp_path_factory.mktemp("embedded") / "model"
    pretrain.main(data=dataset, templates=templates, out=out, prompt=prompt, settings=tiny)
    return out
