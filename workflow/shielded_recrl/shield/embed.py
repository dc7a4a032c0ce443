"""Embed a shard of the prefixes that the read-out is fitted to and judged on.

In: base LM, splits. Out: a folder (see `parts`) with h(u) at the end of each of the shard's prefixes,
float32: `examples` [n, d], next-item examples from the train histories of train users; `validation`
[n, d], users who choose gamma, before the validation split; `heldout` [n, d], held-out users before
the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import prefix_states
from shielded_recrl.shards import WHOLE, Label, Shard, items, require_shard
from shielded_recrl.shield.inputs import Inputs
from shielded_recrl.shield.parts import Part, save_part
from shielded_recrl.shield.serving import Serving
from shielded_recrl.shield.settings import EmbedSettings

# Next-item examples taken from the end of each train user's history, at the most.
POSITIONS = 30
# Neighbouring prefixes that one forward pass embeds: a state is rounded as its batch is shaped.
CHUNK = 64


class StateInputs(Inputs):
    """What the states are made from.

    Attributes:
        seed: seed of roles, of the draws of examples and users, and of the order of the fit.
    """


def main(
    *,
    inputs: Annotated[StateInputs, tyro.conf.arg(name="")],
    out: Path,
    shard: int,
    shards: int,
    settings: Annotated[EmbedSettings, tyro.conf.arg(name="")],
) -> None:
    """Embed a shard of the prefixes that the read-out needs.

    Args:
        inputs: what the states are made from.
        out: folder to write.
        shard: which shard, from 0.
        shards: how many there are, a power of two.
        settings: roles, and how many prefixes.
    """
    from shielded_recrl.explainer.base import default_device, load_base

    own = require_shard(shard, shards)
    needs = Needs.of(inputs.serving(settings, inputs.seed), settings, inputs.seed)
    prefixes = needs.prefixes()
    mine = sum(len(items(some.count, CHUNK, own)) for some in prefixes.values())
    device = default_device()
    # A shard without prefixes needs no LM.
    states = embed(load_base(inputs.base, inputs.precision, device), prefixes, own) if mine else {}
    label = Label(
        made_from=inputs.digest(settings),
        shard=shard,
        shards=shards,
        count=sum(some.count for some in prefixes.values()),
    )
    save_part(out, label, device, [{name: some} for name, some in states.items()], {})
    print(f"{out}: {mine} of {label.count} prefixes")


class Prefixes(NamedTuple):
    """Prefixes by their place, each tokenised when it is asked for."""

    count: int
    at: Callable[[int], Sequence[int]]


class Examples(NamedTuple):
    """Next items of train users: `users[n]` took the item at `ends[n]` of the train history."""

    users: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Needs:
    """Whose states the read-out is fitted to, and whose choose gamma; held-out users judge it."""

    serving: Serving
    examples: Examples
    validation: np.ndarray  # user ids, ascending

    @classmethod
    def of(cls, serving: Serving, settings: EmbedSettings, seed: int) -> Needs:
        """Draw examples and validation users.

        Args:
            serving: the dataset.
            settings: how many, at the most.
            seed: seed of the draws.

        Raises:
            UserError: there are none.
        """
        return cls(
            serving,
            next_item_examples(serving, settings.examples, seed),
            validation_users(serving, settings.validation_users, seed),
        )

    @property
    def targets(self) -> list[int]:
        """The next item of each example."""
        pairs = zip(*map(np.ndarray.tolist, self.examples), strict=True)
        return [int(self.serving.splits.train[user][end]) for user, end in pairs]

    def prefixes(self) -> dict[str, Prefixes]:
        """All prefixes, by what they are for."""
        serving, (users, ends) = self.serving, self.examples
        validation, heldout = self.validation, serving.roles.heldout

        def before(place: int) -> tuple[int, ...]:
            history = serving.splits.train[int(users[place])][: ends[place]]
            return serving.prompts.prefix(history.tolist())[0]

        return {
            "examples": Prefixes(len(users), before),
            "validation": Prefixes(
                len(validation), lambda place: serving.prefix(validation[place], "valid")
            ),
            "heldout": Prefixes(len(heldout), lambda place: serving.prefix(heldout[place], "test")),
        }


def next_item_examples(serving: Serving, examples: int, seed: int) -> Examples:
    """Next items from the train histories of train users.

    Args:
        serving: the dataset.
        examples: how many at the most; a seeded draw where there are more.
        seed: seed of the draw.

    Raises:
        UserError: no train user has two train interactions.
    """
    users = serving.roles.train
    lengths = serving.splits.train.lengths[users]
    counts = np.clip(lengths - 1, 0, POSITIONS)
    owners = np.repeat(users, counts)
    ends = np.repeat(lengths - np.cumsum(counts), counts) + np.arange(len(owners))
    if not len(owners):
        raise UserError(
            "ranking: no train user has two train interactions, so there is no next item to fit "
            "the read-out to; lower ranking.heldout_users or add data"
        )
    drawn = np.sort(np.random.default_rng(seed).permutation(len(owners))[:examples])
    return Examples(owners[drawn], ends[drawn])


def validation_users(serving: Serving, most: int, seed: int) -> np.ndarray:
    """Users with something new in the validation split who are not held out, ascending.

    Args:
        serving: the dataset.
        most: how many at the most; a seeded draw where there are more.
        seed: seed of the draw.

    Raises:
        UserError: there is none.
    """
    users = np.setdiff1d(serving.splits.evaluable("valid"), serving.roles.heldout)
    if not len(users):
        raise UserError(
            "ranking.heldout_users: everybody with a new item in the validation split is held out, "
            "so nobody is left to choose gamma; lower it or add data"
        )
    return np.sort(np.random.default_rng(seed).permutation(users)[:most])


def embed(
    model: nn.Module, prefixes: Mapping[str, Prefixes], shard: Shard = WHOLE
) -> dict[str, Tensor]:
    """h at the end of each of a shard's prefixes.

    Args:
        model: the base LM.
        prefixes: all prefixes, by what they are for.
        shard: whose states are wanted.

    Returns:
        The same names -> float32 states [n, d] on the CPU; what a shard has none of is left out.
    """
    own = {name: items(some.count, CHUNK, shard) for name, some in prefixes.items()}
    return {
        name: prefix_states(model, [prefixes[name].at(place) for place in places], CHUNK)
        for name, places in own.items()
        if places
    }


def joined_states(parts: Sequence[Part]) -> dict[str, Tensor]:
    """What `embed` gives for all prefixes, from the parts of its shards in their order."""
    names = {name: None for part in parts for name in part.index.tensors}
    return {
        name: torch.cat([found for part in parts if (found := part.tensor(name)) is not None])
        for name in names
    }
