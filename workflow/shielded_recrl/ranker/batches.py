"""Sequences to padded batches: windows, length buckets, right padding.

In: one item sequence a user. Out: int64 tensors [B, L], padded on the right with item 0, in which
every interaction of every user but a window's first is a target once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

# Batches that are sorted by length together: enough for little padding, few enough to mix users.
STRETCH = 8


def pad(sequences: Sequence[np.ndarray], length: int) -> Tensor:
    """The last `length` items of each sequence, padded on the right with 0: int64 [B, longest]."""
    kept = [row[-length:] for row in sequences]
    padded = np.zeros((len(kept), max(map(len, kept))), dtype=np.int64)
    for target, row in zip(padded, kept, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def windows(
    sequences: Sequence[np.ndarray], length: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Each sequence of two or more items in windows of at most length + 1 of them.

    Neighbouring windows share one item, the last one's target and the next one's first input, so
    that every item but the first is a target once. The cuts of a longer sequence fall at random
    places, so that each item is met with longer and with shorter contexts over the epochs.
    """
    cut = []
    for row in sequences:
        last = len(row) - 1
        first = int(rng.integers(1, length + 1)) if last > length else last
        ends = [*range(first, last, length), last] if last > 0 else []
        starts = [0, *ends[:-1]]
        cut += [row[start : end + 1] for start, end in zip(starts, ends, strict=False)]
    return cut


def batches(
    sequences: Sequence[np.ndarray], size: int, rng: np.random.Generator
) -> Iterator[list[np.ndarray]]:
    """Batches of sequences of like length, in random order: little padding, other mates each time.

    Shuffled, then sorted by length within stretches of batches, then the batches shuffled.
    """
    order = rng.permutation(len(sequences))
    lengths = np.array([len(row) for row in sequences])
    groups = []
    for start in range(0, len(order), STRETCH * size):
        stretch = order[start : start + STRETCH * size]
        stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
        groups += [stretch[i : i + size] for i in range(0, len(stretch), size)]
    for group in rng.permutation(len(groups)):
        yield [sequences[i] for i in groups[group]]
