"""A prepared dataset as the pages and commands of this package read it.

In: `results/data/{dataset}`. Out: `Dataset`: histories, roles, catalogue and the sources' own ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from shielded_recrl.errors import UserError
from shielded_recrl.explain.answers import Person, Role, Thing
from shielded_recrl.explainer.prompts import Item, load_items
from shielded_recrl.files import read_json
from shielded_recrl.parquet import read_parquet
from shielded_recrl.ranker.data import Splits, load_splits
from shielded_recrl.rl.evaluation.simulator import ClaimIndex
from shielded_recrl.shield.roles import Roles, assign_roles
from shielded_recrl.shield.settings import RoleSettings

# Before an id of the source that is also a dense id.
SOURCE = "source:"
# Digits of the largest int32, which dense ids are.
DIGITS = 10


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items and what is known about them.

    Attributes:
        name: key of `datasets`.
        splits: histories.
        roles: who is protected, held out, and trains.
        items: the catalogue; entry 0 is padding.
        user_ids, item_ids: ids of the source; entry 0 is padding.
        synthetic: whether it is the embedded world.
        sequential: whether the source gives an order.
    """

    name: str
    splits: Splits
    roles: Roles
    items: list[Item]
    user_ids: list[str]
    item_ids: list[str]
    synthetic: bool
    sequential: bool

    @classmethod
    def load(cls, name: str, folder: Path, roles: RoleSettings, seed: int) -> Dataset:
        """Read a dataset folder.

        Args:
            name: key of `datasets`.
            folder: of the dataset.
            roles: how many users are protected and held out.
            seed: of the draw of roles.

        Raises:
            UserError: a file is damaged.
        """
        splits = load_splits(folder)
        stats = read_json(folder / "stats.json")
        if not isinstance(stats, dict) or not {"synthetic", "sequential"} <= stats.keys():
            raise UserError(
                f"{folder / 'stats.json'}: expected `synthetic` and `sequential`; prepare the "
                "dataset again"
            )
        return cls(
            name=name,
            splits=splits,
            roles=assign_roles(splits.evaluable("test"), roles, seed),
            items=load_items(folder / "items.parquet"),
            user_ids=_source_ids(folder / "users.parquet", "user"),
            item_ids=_source_ids(folder / "items.parquet", "item"),
            synthetic=bool(stats["synthetic"]),
            sequential=bool(stats["sequential"]),
        )

    @cached_property
    def index(self) -> ClaimIndex:
        """The catalogue's names, to be found in texts."""
        return ClaimIndex(self.items)

    @cached_property
    def _by_source(self) -> dict[str, int]:
        return {source: user for user, source in enumerate(self.user_ids) if user}

    def find(self, name: str) -> int:
        """The dense id of a user.

        Args:
            name: the dense id, else the id of the source. Where it could be either, the dense id
                is meant; `source:` before it says otherwise.

        Raises:
            UserError: nobody has this id.
        """
        name = name.strip()
        number = name.isascii() and name.isdigit() and len(name) <= DIGITS
        if number and 1 <= int(name) <= self.splits.n_users:
            return int(name)
        user = self._by_source.get(name.removeprefix(SOURCE))
        if user is None:
            raise UserError(
                f"{self.name} has no user {name[:60]!r}: expected 1 to {self.splits.n_users}, or "
                f"an id of the source such as {self.user_ids[1]}"
            )
        return user

    def role(self, user: int) -> Role:
        """The part a user has in the study; protected users train as well."""
        for role in ("protected", "heldout", "train"):
            users = getattr(self.roles, role)
            place = np.searchsorted(users, user)
            if place < len(users) and users[place] == user:
                return role
        return "none"

    def people(self, role: Role | None = None) -> np.ndarray:
        """Ids of the users of a role, ascending; all of them by default."""
        everybody = np.arange(1, self.splits.n_users + 1)
        taking_part = np.concatenate([self.roles.train, self.roles.heldout])
        if role is None:
            return everybody
        if role == "none":
            return np.setdiff1d(everybody, taking_part)
        if role == "train":
            return np.setdiff1d(self.roles.train, self.roles.protected)
        return getattr(self.roles, role)

    def person(self, user: int) -> Person:
        """What is known about a user."""
        items = len(self.splits.train[user]) + len(self.splits.valid[user])
        return Person(user, self.user_ids[user], self.role(user), items)

    def thing(self, item: int) -> Thing:
        """What is known about an item."""
        about = self.items[item]
        return Thing(item, self.item_ids[item], about.title, about.categories)

    def history(self, user: int) -> list[int]:
        """Items before the test split, most recent last."""
        return self.splits.history("test", user).tolist()


def _source_ids(path: Path, column: str) -> list[str]:
    frame = read_parquet(path, {column: pl.Int32, "source_id": pl.String}).sort(column)
    return ["", *frame["source_id"].to_list()]
