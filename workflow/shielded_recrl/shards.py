"""Which part of a stage's work each of several jobs does, so that their number changes no bit.

Work is cut into chunks of a fixed number of neighbouring items, and a shard takes whole chunks:
what is computed together, and so how it is rounded, is the same for every number of shards. One
function computes a part, and the whole is the part of the only shard:

    rows = items(len(prefixes), CHUNK, shard)          # WHOLE by default: all of them
    states = embed(model, prefixes[rows.start : rows.stop])

Parts that are lists are joined in the order of their shards. Those that are sums take

    sums = [sum over these items, or None, for these in leaves(len(prefixes), CHUNK, shard)]
    pairwise(sums, add)

a fixed tree over `MOST` leaves: with a power of two of shards, the part of each is the sum of a
subtree, and `pairwise` over the parts finishes the very same tree. A part is labelled with what it
was made from, and `in_order` refuses parts that do not make one whole.

A command that computes a part takes `--shard 1 --shards 4`; the one that needs the whole computes it
itself, or gathers what `--parts part part ...` names.

In: numbers of items and shards; labels of files. Out: ranges, sums, files in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from shielded_recrl.errors import UserError
from shielded_recrl.settings import Strict

# Most shards of a stage, and the leaves of every sum. A power of two.
MOST = 256

T = TypeVar("T")


class Shard(NamedTuple):
    """One of several jobs that share a stage's work."""

    index: int = 0  # from 0
    of: int = 1  # a power of two, at most MOST


WHOLE = Shard()


class Label(Strict):
    """What a part says of itself, beside its content."""

    made_from: str  # digest of all that the whole depends on; see `resume.fingerprint`
    shard: int
    shards: int
    count: int  # items of the whole


def require_shard(index: int, of: int) -> Shard:
    """The shard of a command's flags.

    Raises:
        UserError: there is no such shard, or their number is not one of 1, 2, 4 ... `MOST`.
    """
    if of < 1 or MOST % of:
        raise UserError(f"shards: {of} is not one of 1, 2, 4 ... {MOST}")
    if not 0 <= index < of:
        raise UserError(f"shard: there is no shard {index} of {of}; expected 0 to {of - 1}")
    return Shard(index, of)


def part(chunks: int, shard: Shard = WHOLE) -> range:
    """The chunks of a shard: neighbours, as many as others have or one fewer; perhaps none.

    >>> [list(part(5, Shard(index, 4))) for index in range(4)]
    [[0], [1], [2], [3, 4]]
    """
    return range(chunks * shard.index // shard.of, chunks * (shard.index + 1) // shard.of)


def items(count: int, size: int, shard: Shard = WHOLE) -> range:
    """The items of a shard, where `size` neighbours make a chunk; only the last may be smaller.

    >>> items(10, 4, Shard(0, 2)), items(10, 4, Shard(1, 2))
    (range(0, 4), range(4, 10))
    """
    return _within(part(-(-count // size), shard), count, size)


def leaves(count: int, size: int, shard: Shard = WHOLE) -> list[range]:
    """The items of each leaf of a shard's sum, many of them none; `MOST` leaves make the whole."""
    chunks = -(-count // size)
    return [_within(part(chunks, Shard(leaf, MOST)), count, size) for leaf in part(MOST, shard)]


def _within(chunks: range, count: int, size: int) -> range:
    return range(min(chunks.start * size, count), min(chunks.stop * size, count))


def pairwise(terms: Iterable[T | None], add: Callable[[T, T], T]) -> T | None:
    """The sum of 2^k terms by a balanced binary tree, for an addition that is not associative.

    Terms are taken one by one, and no more than k + 1 sums are kept.

    Args:
        terms: in order; None where there is nothing to add.
        add: sum of a left and a right term; it may change the left one.

    Returns:
        None where every term is None.

    Raises:
        ValueError: the number of terms is no power of two.

    >>> pairwise(["a", "b", None, "d"], lambda left, right: f"({left}{right})")
    '((ab)d)'
    """
    sums: list[tuple[int, T | None]] = []
    for term in terms:
        height = 0
        while sums and sums[-1][0] == height:
            left = sums.pop()[1]
            term = left if term is None else term if left is None else add(left, term)
            height += 1
        sums.append((height, term))
    if len(sums) != 1:
        raise ValueError("the number of terms is no power of two")
    return sums[0][1]


def in_order(labels: Mapping[Path, Label], made_from: str) -> list[Path]:
    """The files of the parts of one whole, in the order of their shards.

    Args:
        labels: what each file says of itself.
        made_from: digest of what the whole is to be made from.

    Raises:
        UserError: a part was made from something else or for another number of shards, is given
            twice, or is missing.
    """
    if not labels:
        raise UserError("shards: no part is given; give those of all shards")
    first, expected = next(iter(labels.items()))
    found: dict[int, Path] = {}
    for path, label in labels.items():
        if label.made_from != made_from:
            raise UserError(
                f"{path}: made from other inputs or with other settings; delete it and run its job again"
            )
        if (label.shards, label.count) != (expected.shards, expected.count):
            raise UserError(
                f"{path}: one of {label.shards} shards of {label.count} items, but {first} is one "
                f"of {expected.shards} of {expected.count}; give the shards of one run"
            )
        if label.shard in found:
            raise UserError(
                f"{path}: shard {label.shard}, as is {found[label.shard]}; give each once"
            )
        found[label.shard] = path
    for shard in range(expected.shards):
        if shard not in found:
            raise UserError(f"shards: shard {shard} of {expected.shards} is missing; run its job")
    return [found[shard] for shard in range(expected.shards)]
