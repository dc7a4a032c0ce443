"""Raw files of one dataset to interactions, items, users and splits.

In: an interaction file and, where there is one, a metadata file, as their owners publish them.
Out, in one folder:

    interactions, train, valid, test .parquet   user, item, timestamp (s), order, weight
    items.parquet   item, source_id, title, text, categories, popularity (count in train alone)
    users.parquet   user, source_id, group (null: no source here tells one), name (null where the
                    source has none; kept so that the audit can look for it in texts)
    reviews.parquet   user, item, split, text: what users wrote; empty where the source has none
    stats.json      rows read, dropped and why, kept; sizes; sequential; synthetic; sha256 of inputs
    quarantine.jsonl   the rows that could not be read: file, line, reason, text

Ids are dense and start at 1. The order of steps: unreadable rows out, one interaction a user and
item, positives (weight >= min_weight), k-core, ids, order, split.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import tyro

from shielded_recrl.data import metadata as metadata_files
from shielded_recrl.data import raw as raw_files
from shielded_recrl.data import split as splits
from shielded_recrl.data.quarantine import Quarantine
from shielded_recrl.data.reviews import SCHEMA as REVIEW_SCHEMA
from shielded_recrl.data.reviews import write_reviews
from shielded_recrl.data.settings import PrepareSettings, require_dataset
from shielded_recrl.errors import UserError
from shielded_recrl.files import SEAL, sealed, sha256, write_json

NOUNS = {"books": "Book", "ml25m": "Movie", "steam": "Game"}
SIDES = ("user", "item")
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
    for path in filter(None, (interactions, metadata)):
        _require_file(path)
    with Quarantine(out / "quarantine.jsonl") as quarantine:
        raw = raw_files.LOADERS[dataset](interactions, quarantine, out)
        dropped = dict(sorted(quarantine.counts[raw.file].items()))
        if not raw.read:
            raise UserError(f"{raw.file}: no rows; expected {raw.expected}")
        _refuse_bad(raw.file, raw.read, dropped, quarantine, settings.max_bad_share, raw.expected)
        columns = raw.columns
        read = {
            f"{side}s_read": int(np.count_nonzero(splits.counts(columns[side]))) for side in SIDES
        }
        dropped |= _drop(columns, settings)
        if raw.merged:
            dropped["merged into one row a user and title"] = raw.merged
        kept = len(columns["user"])
        if not kept:
            raise UserError(
                f"{interactions}: none of {raw.read} rows is left after min_weight "
                f"{settings.min_weight} and min_interactions {settings.min_interactions}; lower "
                "them"
            )
        columns["user"], users = _numbered(columns["user"], raw.users)
        columns["item"], items = _numbered(columns["item"], raw.items)
        frame, part = _ordered(columns, raw, settings, seed)
        sizes = dict(zip(splits.PARTS, np.bincount(part, minlength=3).tolist(), strict=True))
        for name, size in sizes.items():
            if not size:
                raise UserError(
                    f"{interactions}: the {name} split is empty ({kept} interactions of "
                    f"{len(users)} users kept); lower min_interactions or change split"
                )
        popularity = splits.counts(frame["item"].to_numpy()[part == 0], len(items) + 1)[1:]
        catalogue, about = _catalogue(
            dataset, items, popularity, metadata, quarantine, settings.max_bad_share
        )
    if raw.texts:
        target = out / "reviews.parquet"
        reviews, names = write_reviews(target, raw.texts(), users, items, frame, part)
    else:
        reviews, names = 0, pl.repeat(None, len(users), dtype=pl.String, eager=True)
        _write(out, "reviews", pl.DataFrame(schema=REVIEW_SCHEMA))
    with ThreadPoolExecutor(2) as pool:
        writes = [pool.submit(_write, out, "interactions", frame)]
        for number, name in enumerate(splits.PARTS):
            writes.append(pool.submit(_write, out, name, frame, part == number))
    for write in writes:
        write.result()
    _write(out, "items", catalogue)
    _write(
        out,
        "users",
        users.to_frame("source_id").select(
            pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("user"),
            "source_id",
            pl.lit(None, dtype=pl.String).alias("group"),
            names.alias("name"),
        ),
    )
    digests = {interactions: raw.sha256}
    if metadata is not None and metadata != interactions:
        digests[metadata] = sha256(metadata)
    # By name, so that a result does not depend on where the files lie; by path if names are equal.
    alone = len({path.name for path in digests}) == len(digests)
    inputs = {path.name if alone else str(path): digest for path, digest in digests.items()}
    stats = {
        "dataset": dataset,
        "synthetic": synthetic,
        "sequential": raw.sequential,
        "seed": seed,
        "settings": settings.model_dump(),
        "rows_read": raw.read,
        **read,
        "dropped": dropped,
        "kept": kept,
        "users": len(users),
        "items": len(items),
        "density": kept / (len(users) * len(items)),
        "mean_per_user": kept / len(users),
        "splits": sizes,
        "reviews": reviews,
        "metadata": about,
        "inputs": inputs,
    }
    write_json(out / "stats.json", stats)
    print(
        f"{out}: {kept} interactions of {len(users)} users with {len(items)} items "
        f"(train {sizes['train']}, valid {sizes['valid']}, test {sizes['test']})"
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; name the raw file, or fetch it first")


def _drop(columns: dict[str, np.ndarray], settings: PrepareSettings) -> dict[str, int]:
    """Leave the positives of the k-core in the columns; reason -> number of rows that went."""
    steps = {
        "repeated user and item": lambda user, item, weight, time: splits.latest(user, item, time),
        "below min_weight": lambda user, item, weight, time: (
            weight >= np.float32(settings.min_weight)
        ),
        "outside the k-core": lambda user, item, weight, time: splits.k_core(
            user, item, settings.min_interactions
        ),
    }
    dropped = {}
    for reason, step in steps.items():
        keep = step(**columns)
        if gone := len(keep) - int(np.count_nonzero(keep)):
            dropped[reason] = gone
            _rearrange(columns, keep)
    return dropped


def _rearrange(columns: dict[str, np.ndarray], rows: np.ndarray) -> None:
    """Take rows by mask or place; two columns at a time, so that only two are there twice."""

    def take(name: str) -> None:
        # Several times as fast as column[mask].
        column = columns[name]
        columns[name] = column.compress(rows) if rows.dtype == bool else column.take(rows)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(take, list(columns)))


def _numbered(codes: np.ndarray, ids: raw_files.Ids) -> tuple[np.ndarray, pl.Series]:
    """Codes as dense ids from 1, and the source id of each, as text."""
    present = np.flatnonzero(splits.counts(codes))
    source = ids.source(present)
    numbers = splits.dense_ids(source)
    table = np.zeros(present[-1] + 1, np.int32)
    table[present] = numbers
    in_order = np.empty(len(present), np.int64)
    in_order[numbers - 1] = np.arange(len(present))
    return splits.look_up(table, codes), source[in_order].cast(pl.String)


def _ordered(
    columns: dict[str, np.ndarray],
    raw: raw_files.RawInteractions,
    settings: PrepareSettings,
    seed: int,
) -> tuple[pl.DataFrame, np.ndarray]:
    """The table of interactions, by user and order, and the part of each; empties `columns`."""
    user, item, time = (columns[name] for name in ("user", "item", "time"))
    if raw.sequential:
        order = splits.chronological(user, time)
    else:
        order = splits.shuffled(user, item, np.random.default_rng(seed))
    del user, item, time
    if order is not None:
        _rearrange(columns, order)
    del order
    size = splits.counts(columns["user"])[1:]
    timestamp = columns.pop("time")
    timestamp //= raw.ticks
    part = splits.split(
        size,
        timestamp if raw.sequential else None,
        settings.split,
        settings.valid_share,
        settings.test_share,
    )
    untimed = pl.repeat(None, len(part), dtype=pl.Int64, eager=True)
    frame = pl.DataFrame(
        {
            "user": columns.pop("user"),
            "item": columns.pop("item"),
            "timestamp": timestamp if raw.sequential else untimed,
            "order": splits.positions(size),
            "weight": columns.pop("weight"),
        }
    )
    return frame, part


def _write(out: Path, name: str, table: pl.DataFrame, rows: np.ndarray | None = None) -> None:
    if rows is not None:
        table = table.filter(pl.Series(rows))
    with sealed(out / f"{name}.parquet") as partial:
        # Statistics serve to skip row groups, and every reader here wants all rows.
        table.write_parquet(partial, compression="snappy", statistics=False, metadata=SEAL)


def _catalogue(
    dataset: str,
    items: pl.Series,
    popularity: np.ndarray,
    path: Path | None,
    quarantine: Quarantine,
    max_bad_share: float,
) -> tuple[pl.DataFrame, dict[str, object]]:
    """The table of items and what there is to say about their metadata.

    Args:
        dataset: books, ml25m or steam.
        items: source id of each item, the first being that of item 1.
        popularity: interactions of each item in train.
        path: file of the metadata.
        quarantine: takes its bad rows.
        max_bad_share: largest share of bad rows.
    """
    found = metadata_files.Metadata(pl.DataFrame(schema=metadata_files.SCHEMA), 0, 0, {})
    if path is not None:
        found = metadata_files.LOADERS[dataset](path, set(items), quarantine)
        file = f"{path}/movies.csv" if path.suffix == ".zip" else str(path)
        expected = "one item a row, as published"
        _refuse_bad(file, found.parsed, found.bad, quarantine, max_bad_share, expected)
    catalogue = (
        pl.DataFrame(
            {
                "item": np.arange(1, len(items) + 1, dtype=np.int32),
                "source_id": items,
                "popularity": popularity.astype(np.int32),
            }
        )
        .join(found.frame, on="source_id", how="left")
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
        "popularity",
    )
    about = {
        "rows_read": found.read,
        "bad": found.bad,
        "matched": len(found.frame),
        "untitled": untitled,
    }
    return catalogue, about


def _refuse_bad(
    file: str,
    read: int,
    bad: dict[str, int],
    quarantine: Quarantine,
    max_bad_share: float,
    expected: str,
) -> None:
    """Refuse a file of which more than `max_bad_share` of the `read` rows are bad."""
    total = sum(bad.values())
    if total > max_bad_share * read:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(bad.items()))
        raise UserError(
            f"{file}: {total} of {read} rows are unreadable ({reasons}), first "
            f"{quarantine.first(file)}; expected {expected}; mend the file or raise max_bad_share "
            f"({max_bad_share})"
        )
