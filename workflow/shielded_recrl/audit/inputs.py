"""Reading what the audits need, and refusing what they cannot use.

In: parquet tables, explanations.jsonl and probes.json. Out: data frames of before and after
training, aligned; probes; ordinary reviews, and those in which a phrase occurs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from shielded_recrl.audit.privacy import Phrase
from shielded_recrl.errors import UserError
from shielded_recrl.files import intact, read_json, read_jsonl

SIDES = ("before", "after")
RANKING_COLUMNS = ("step", "user", "position", "item")
TEXT_SCHEMA = {
    "step": pl.Int64,
    "user": pl.Int64,
    "item": pl.Int64,
    "position": pl.Int64,
    "title": pl.String,
    "categories": pl.List(pl.String),
    "text": pl.String,
}
TYPES = {pl.Int64: int, pl.String: str, pl.List(pl.String): list}
TEXTS = {"user": int, "item": int, "text": str}
INJECTIONS = {
    "attack": str,
    "user": int,
    "item": int,
    "when": str,
    "payload": str,
    "attacked": str,
    "benign": str,
}
MEMBERS = {"member": bool, "base": float, "adapter": float}
# Reviews read at once.
BLOCK = 25_000
# What is no letter and no number, and so parts words; see `privacy.words`.
NO_WORD = r"[^\p{L}\p{N}]+"


# Before and after training.
Frames = tuple[pl.DataFrame, pl.DataFrame]


class Probes(NamedTuple):
    """What `audit probe` wrote: samples [N] before and after, attacks, canaries and losses."""

    users: np.ndarray
    items: np.ndarray
    before: list[str]
    after: list[str]
    injection: list[dict[str, Any]]
    canaries: dict[str, Any] | None
    membership: list[dict[str, Any]]


def read_table(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Read columns of a parquet file, in full."""
    try:
        return pl.read_parquet(intact(path), columns=list(columns))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, columns, error) from error


def read_users(path: Path) -> pl.DataFrame:
    """Columns user, source_id, group of users.parquet, and name: null where the source has none."""
    try:
        named = "name" in pl.read_parquet_schema(intact(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, ("user", "source_id", "group"), error) from error
    table = read_table(path, ("user", "source_id", "group", *["name"] * named))
    return table if named else table.with_columns(pl.lit(None, dtype=pl.String).alias("name"))


def read_interactions(path: Path, users: np.ndarray) -> pl.DataFrame:
    """Columns user and item of some users' interactions; the others are never held in memory."""
    columns = ("user", "item")
    try:
        return (
            pl.scan_parquet(intact(path))
            .select(columns)
            .filter(pl.col("user").is_in(users.tolist()))
            .collect()
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, columns, error) from error


def train_reviews(path: Path, phrases: Set[Phrase]) -> Iterator[str]:
    """Texts of the train split of reviews.parquet in which a phrase may occur, one at a time.

    Reviews may be many, and Python's words and n-grams of all of them slow. So polars looks for the
    phrases first (Aho and Corasick 1975), between the same words; only a letter that Python's own
    Unicode tables lack is read otherwise.

    Args:
        path: reviews.parquet.
        phrases: words in a row, see `privacy.words`.
    """
    if not phrases:
        return
    wanted = sorted(f" {' '.join(phrase)} " for phrase in phrases)
    text = pl.col("text").str.to_lowercase().str.replace_all(NO_WORD, " ")
    said = pl.concat_str(pl.lit(" "), text, pl.lit(" ")).str.contains_any(wanted)
    reviews = pl.scan_parquet(intact(path))
    for start in range(0, reviews.select(pl.len()).collect().item(), BLOCK):
        # Sliced first: a slice of what is left of a filter reads the file from its start.
        yield from _of_train(reviews.slice(start, BLOCK)).filter(said).collect()["text"]


def sample_reviews(path: Path, count: int, seed: int) -> list[str]:
    """A random sample of the texts of the train split; all of them where there are fewer.

    Raises:
        UserError: the file is missing, damaged, or lacks a column.
    """
    try:
        reviews = _of_train(pl.scan_parquet(intact(path)))
        rows = reviews.select(pl.len()).collect().item()
        chosen = np.random.default_rng(seed).permutation(rows)[:count].tolist()
        drawn = reviews.with_row_index("place").filter(pl.col("place").is_in(chosen))
        return drawn.collect()["text"].to_list()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, ("split", "text"), error) from error


def read_texts(path: Path) -> pl.DataFrame:
    """Read the columns of `TEXT_SCHEMA` of explanations.jsonl."""
    try:
        rows = read_jsonl(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with `rl evaluate`") from None
    kinds = {key: TYPES[kind] for key, kind in TEXT_SCHEMA.items()}
    for number, row in enumerate(rows, start=1):
        if wrong := _wrong_key(row, kinds):
            raise UserError(
                f"{path}, line {number}: {wrong!r} is missing or of a wrong type; "
                "make the file again with `rl evaluate`"
            )
    return pl.DataFrame([{key: row[key] for key in TEXT_SCHEMA} for row in rows], TEXT_SCHEMA)


def read_probes(path: Path) -> Probes:
    """Read probes.json.

    Raises:
        UserError: the file is missing or damaged, lacks a part, or its samples before and after are
            not for the same users and items.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with `audit probe`") from None
    parts = {"samples": dict, "injection": list, "membership": list}
    if wrong := _wrong_key(found, parts):
        raise _no_probe(path, wrong)
    if wrong := _wrong_key(found["samples"], dict.fromkeys(SIDES, list)):
        raise _no_probe(path, f"samples.{wrong}")
    canaries = found.get("canaries", ...)
    if not isinstance(canaries, dict | None):
        raise _no_probe(path, "canaries")
    sides = [found["samples"][when] for when in SIDES]
    rows = {
        "samples.before": (sides[0], TEXTS),
        "samples.after": (sides[1], TEXTS),
        "injection": (found["injection"], INJECTIONS),
        "membership": (found["membership"], MEMBERS),
    }
    for name, (part, kinds) in rows.items():
        for place, row in enumerate(part):
            if wrong := _wrong_key(row, kinds):
                raise _no_probe(path, f"{name}.{place}.{wrong}")
    asked = [[(row["user"], row["item"]) for row in side] for side in sides]
    if asked[0] != asked[1] or not asked[0]:
        raise UserError(
            f"{path}: samples before and after are not for the same users and items, or there are "
            "none; make it again with `audit probe`"
        )
    return Probes(
        *np.array(asked[0]).T,
        *([row["text"] for row in side] for side in sides),
        found["injection"],
        canaries,
        found["membership"],
    )


def with_samples(texts: Frames, probes: Probes) -> Frames:
    """Texts of the evaluation and samples of the probe as one; a sample has no position."""
    columns = ("user", "item", "position", "text")
    asked = {"user": probes.users, "item": probes.items, "position": None}
    return tuple(
        pl.concat(
            [
                rows.select(columns),
                pl.DataFrame({**asked, "text": written}, schema=rows.select(columns).schema),
            ]
        )
        for rows, written in zip(texts, (probes.before, probes.after), strict=True)
    )


def ordinary_texts(data: Path, count: int, seed: int) -> tuple[str, list[str]]:
    """What ordinary texts of a dataset are, and some of them.

    Args:
        data: folder of the dataset.
        count: how many, at the most.
        seed: of the draw.
    """
    if reviews := sample_reviews(data / "reviews.parquet", count, seed):
        return "reviews", reviews
    titles = read_table(data / "items.parquet", ("item", "title")).sort("item")["title"]
    return "titles", titles.fill_null("").sample(min(len(titles), count), seed=seed).to_list()


def judged_texts(texts: Frames, ordinary: Sequence[str]) -> list[str]:
    """All texts that a scorer judges: before, after, and ordinary ones."""
    return [*(text for rows in texts for text in rows["text"]), *ordinary]


def before_and_after(rows: pl.DataFrame, path: Path) -> Frames:
    """Rows of step 0 and of the last step, in equal order of user and position.

    Raises:
        UserError: a step is missing, or the two do not cover the same users and positions.
    """
    if not len(rows) or rows["step"].min() != 0 or rows["step"].max() == 0:
        raise UserError(f"{path}: needs rows of step 0 and of a later step; evaluate a trained run")
    before, after = (
        rows.filter(pl.col("step") == step).sort("user", "position")
        for step in (0, rows["step"].max())
    )
    keys = ["user", "position"]
    if not before.select(keys).equals(after.select(keys)):
        raise UserError(
            f"{path}: step 0 and step {after['step'][0]} cover different users or positions; "
            "evaluate the run again"
        )
    return before, after


def indices(served: pl.Series, items: pl.Series, path: Path) -> np.ndarray:
    """Places from 0 of items [N] in the sorted catalogue; `path` is named if one is not in it."""
    known, found = items.to_numpy(), served.to_numpy()
    places = np.searchsorted(known, found).clip(max=len(known) - 1)
    if (strangers := found[known[places] != found]).size:
        raise UserError(
            f"{path}: item {strangers[0]} is not in the catalogue; give the run's own --data"
        )
    return places


def _of_train(reviews: pl.LazyFrame) -> pl.LazyFrame:
    return reviews.filter(pl.col("split") == "train").select("text")


def _wrong_key(row: Any, kinds: Mapping[str, type]) -> str | None:
    """First key that a row lacks, or whose value is of another type; an int is a float, too."""
    for key, kind in kinds.items():
        value = row.get(key) if isinstance(row, dict) else None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        good = number if kind is float else isinstance(value, kind)
        if not good or (kind is int and isinstance(value, bool)):
            return key
    return None


def _no_probe(path: Path, key: str) -> UserError:
    return UserError(
        f"{path}: {key!r} is missing or of a wrong type; make the file again with `audit probe`"
    )


def _unreadable(path: Path, columns: Sequence[str], error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file; make it with the stage before")
    reason = str(error).strip().splitlines()[0]
    return UserError(
        f"{path}: not a parquet file with columns {', '.join(columns)} ({reason}); make it again"
    )
