"""Settings of the data stage."""

from typing import Literal

from pydantic import Field

from shielded_recrl.errors import UserError
from shielded_recrl.settings import Settings

# Interactions and item metadata of each dataset, as the embedded world and the owners name them.
RAW_FILES = {
    "books": ("reviews_Books_5.json.gz", "meta_Books.json.gz"),
    "ml25m": ("ratings.csv", "movies.csv"),
    "steam": ("steam-200k.csv", "steam_games.json.gz"),
}
DATASETS = tuple(RAW_FILES)
# Datasets published more than once, the default edition first.
EDITIONS = {"books": (2023, 2014)}


class WorldSettings(Settings):
    """The embedded world: synthetic raw files in the true formats."""

    users: int = Field(400, ge=20, description="Users of each embedded dataset.")
    items: int = Field(240, ge=20, description="Items of each embedded dataset.")
    interactions: int = Field(24, ge=5, description="Mean number of interactions of a user.")


class PrepareSettings(Settings):
    """From raw rows to interactions and splits."""

    min_weight: float = Field(
        0.0, ge=0, description="Interactions below this rating (Steam: hours) are not positives."
    )
    min_interactions: int = Field(
        5, ge=1, description="Iterated k-core: users and items with fewer interactions are dropped."
    )
    split: Literal["per_user", "leave_one_out", "global_time"] = Field(
        "per_user", description="How interactions are split; per_user is chronological 80/10/10."
    )
    valid_share: float = Field(0.1, gt=0, lt=0.5, description="Share of the validation split.")
    test_share: float = Field(0.1, gt=0, lt=0.5, description="Share of the test split.")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="Largest share of unreadable raw rows before the rule fails."
    )


class DatasetSettings(PrepareSettings):
    """One dataset: where its raw files come from and how they are prepared."""

    source: str = Field(
        "embedded",
        description="`embedded`, `download`, or the path of the raw file or folder; a file may lie "
        "at `s3://bucket/key`.",
    )
    metadata: str | None = Field(
        None,
        description="Where `source` is a file: `download`, or the path of the item metadata.",
    )
    edition: int | None = Field(
        None, description="Edition that `download` fetches: books has 2023 (the default) and 2014."
    )


def release(dataset: str, edition: int | None) -> str:
    """Name of what `download` fetches, as in resources/checksums.yaml.

    >>> release("books", None), release("books", 2014), release("steam", None)
    ('books-2023', 'books-2014', 'steam')
    """
    if dataset not in EDITIONS:
        return dataset
    return f"{dataset}-{edition or EDITIONS[dataset][0]}"


def require_dataset(name: str) -> None:
    """Refuse a name that is no dataset.

    Raises:
        UserError: the name is not in `DATASETS`.
    """
    if name not in DATASETS:
        raise UserError(f"dataset {name!r} is unknown; expected one of {', '.join(DATASETS)}")
