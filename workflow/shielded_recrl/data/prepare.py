"""Raw files of one dataset to interactions, items, users and splits.

In: an interaction file and, where there is one, a metadata file, as their owners publish them.
Out, in one folder:

    interactions, train, valid, test .parquet   user, item, timestamp (s), order, weight
    items.parquet   item, source_id, title, text, categories, popularity (count in train alone)
    users.parquet   user, source_id, group (null: no source here tells one)
    stats.json      rows read, dropped and why, kept; sizes; sequential; synthetic; sha256 of inputs

Ids are dense and start at 1. The order of steps: unreadable rows out, one interaction a user and
item, positives (weight >= min_weight), k-core, ids, order, split.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import tyro

from shielded_recrl.data import metadata as metadata_files
from shielded_recrl.data import raw as raw_files
from shielded_recrl.data import split as splits
from shielded_recrl.data.settings import PrepareSettings, require_dataset
from shielded_recrl.errors import UserError
from shielded_recrl.files import atomic, sha256, write_json

NOUNS = {"books": "Book", "ml25m": "Movie", "steam": "Game"}
COLUMNS = ("user", "item", "timestamp", "order", "weight")
DEFAULTS = PrepareSettings()


def main(
    *,
    dataset: str,
    interactions: Path,
    out: Path,
    metadata: Path | None = None,
    synthetic: bool = False,
    seed: int = 42,
    settings: Annotated[PrepareSettings, tyro.conf.arg(name="")] = DEFAULTS,
) -> None:
    """Turn raw files into interactions, items, users and splits.

    Args:
        dataset: books, ml25m or steam: the format of the raw files.
        interactions: file of reviews, ratings or plays; for ml25m also the published zip.
        out: folder for the tables.
        metadata: file of items (meta_Books.json.gz, movies.csv, steam_games.json.gz); the zip of
            ml25m holds its own.
        synthetic: whether the raw files are the embedded ones; only written down.
        seed: order of each user's games in steam, which has no times.
        settings: filters and split.
    """
    require_dataset(dataset)
    if metadata is None and interactions.suffix == ".zip":
        metadata = interactions
    raw = raw_files.LOADERS[dataset](interactions)
    _refuse_bad(interactions, raw.read, raw.bad, settings.max_bad_share, raw.expected)
    dropped = dict(raw.bad)
    if raw.merged:
        dropped["merged into one row a user and title"] = raw.merged
    frame = raw.frame
    for reason, step in (
        ("repeated user and item", splits.latest),
        ("below min_weight", lambda rows: rows.filter(pl.col("weight") >= settings.min_weight)),
        ("outside the k-core", lambda rows: splits.k_core(rows, settings.min_interactions)),
    ):
        before = len(frame)
        frame = step(frame)
        if before > len(frame):
            dropped[reason] = before - len(frame)
    if frame.is_empty():
        raise UserError(
            f"{interactions}: none of {raw.read} rows is left after min_weight "
            f"{settings.min_weight} and min_interactions {settings.min_interactions}; lower them"
        )
    users, items = splits.dense_ids(frame["user"]), splits.dense_ids(frame["item"])
    frame = (
        frame.join(users.rename({"source_id": "user", "id": "user_id"}), on="user")
        .join(items.rename({"source_id": "item", "id": "item_id"}), on="item")
        .drop("user", "item")
        .rename({"user_id": "user", "item_id": "item"})
    )
    if raw.sequential:
        frame = splits.chronological(frame)
    else:
        frame = splits.shuffled(frame, np.random.default_rng(seed))
    frame = frame.with_columns((pl.col("time") // raw.ticks).alias("timestamp")).select(COLUMNS)
    parts = splits.split(frame, settings.split, settings.valid_share, settings.test_share)
    for name, part in parts.items():
        if part.is_empty():
            raise UserError(
                f"{interactions}: the {name} split is empty ({len(frame)} interactions of "
                f"{len(users)} users kept); lower min_interactions or change split"
            )
    catalogue, about = _catalogue(dataset, items, parts["train"], metadata, settings.max_bad_share)
    tables = {
        "interactions": frame,
        **parts,
        "items": catalogue,
        "users": users.select(
            pl.col("id").alias("user"), "source_id", pl.lit(None, dtype=pl.String).alias("group")
        ),
    }
    for name, table in tables.items():
        with atomic(out / f"{name}.parquet") as partial:
            table.write_parquet(partial, compression="zstd")
    inputs = {path.name: sha256(path) for path in (interactions, metadata) if path}
    stats = {
        "dataset": dataset,
        "synthetic": synthetic,
        "sequential": raw.sequential,
        "seed": seed,
        "settings": settings.model_dump(),
        "rows_read": raw.read,
        "dropped": dropped,
        "kept": len(frame),
        "users": len(users),
        "items": len(items),
        "density": len(frame) / (len(users) * len(items)),
        "mean_per_user": len(frame) / len(users),
        "splits": {name: len(part) for name, part in parts.items()},
        "metadata": about,
        "inputs": inputs,
    }
    write_json(out / "stats.json", stats)
    print(
        f"{out}: {len(frame)} interactions of {len(users)} users with {len(items)} items "
        f"(train {len(parts['train'])}, valid {len(parts['valid'])}, test {len(parts['test'])})"
    )


def _catalogue(
    dataset: str,
    items: pl.DataFrame,
    train: pl.DataFrame,
    path: Path | None,
    max_bad_share: float,
) -> tuple[pl.DataFrame, dict[str, object]]:
    """The table of items and what there is to say about their metadata."""
    found = metadata_files.Metadata(pl.DataFrame(schema=metadata_files.SCHEMA), 0, {})
    if path is not None:
        found = metadata_files.LOADERS[dataset](path, set(items["source_id"]))
        _refuse_bad(path, found.read, found.bad, max_bad_share, "one item a row, as published")
    popularity = train.group_by("item").agg(pl.len().cast(pl.Int32).alias("popularity"))
    catalogue = (
        items.rename({"id": "item"})
        .join(found.frame, on="source_id", how="left")
        .join(popularity, on="item", how="left")
        .sort("item")
    )
    # A Steam id is the title itself.
    named = pl.col("source_id") if dataset == "steam" else pl.col("title")
    untitled = 0 if dataset == "steam" else catalogue["title"].null_count()
    if untitled:
        print(
            f"{untitled} of {len(items)} items have no title and are called "
            f"'{NOUNS[dataset]} <id>'",
            file=sys.stderr,
        )
    catalogue = catalogue.select(
        "item",
        "source_id",
        pl.coalesce(named, pl.format(f"{NOUNS[dataset]} {{}}", "source_id")).alias("title"),
        pl.col("text").fill_null(""),
        pl.col("categories").fill_null([]),
        pl.col("popularity").fill_null(0),
    )
    about = {
        "rows_read": found.read,
        "bad": found.bad,
        "matched": len(found.frame),
        "untitled": untitled,
    }
    return catalogue, about


def _refuse_bad(
    path: Path, read: int, bad: dict[str, int], max_bad_share: float, expected: str
) -> None:
    total = sum(bad.values())
    if not read:
        raise UserError(f"{path}: no rows; expected {expected}")
    if total > max_bad_share * read:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(bad.items()))
        raise UserError(
            f"{path}: {total} of {read} rows are unreadable ({reasons}); expected {expected}; "
            f"mend the file or raise max_bad_share ({max_bad_share})"
        )
