"""Parts of a stage's work: nothing is left out or done twice, and sums are the same to the bit."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.shards import (
    MOST,
    WHOLE,
    Label,
    Shard,
    in_order,
    items,
    leaves,
    pairwise,
    part,
    require_shard,
)

COUNTS = st.integers(0, 3000)
SIZES = st.integers(1, 70)
SHARDS = st.sampled_from([2**k for k in range(9)])


def every(shards: int) -> list[Shard]:
    return [Shard(index, shards) for index in range(shards)]


@given(COUNTS, SHARDS)
def test_parts_are_neighbours_of_almost_one_size(chunks, shards):
    parts = [part(chunks, shard) for shard in every(shards)]
    assert [chunk for own in parts for chunk in own] == list(range(chunks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(COUNTS, SIZES, SHARDS)
def test_a_shard_takes_whole_chunks(count, size, shards):
    parts = [items(count, size, shard) for shard in every(shards)]
    assert [item for own in parts for item in own] == list(range(count))
    assert all(own.start % size == 0 or own.start == count for own in parts)


@given(COUNTS, SIZES, SHARDS)
def test_leaves_are_those_of_the_whole(count, size, shards):
    split = [leaf for shard in every(shards) for leaf in leaves(count, size, shard)]
    assert split == leaves(count, size)
    assert len(split) == MOST
    for shard in every(shards):
        within = [item for leaf in leaves(count, size, shard) for item in leaf]
        assert within == list(items(count, size, shard))


@given(st.lists(st.floats(-1e6, 1e6), max_size=600), SIZES, SHARDS)
def test_a_sum_in_parts_has_the_bits_of_the_whole(values, size, shards):
    def total(shard: Shard) -> float | None:
        sums = [sum(values[i] for i in leaf) if leaf else None for leaf in own(shard)]
        return pairwise(sums, lambda left, right: left + right)

    def own(shard: Shard) -> list[range]:
        return leaves(len(values), size, shard)

    parts = [total(shard) for shard in every(shards)]
    assert pairwise(parts, lambda left, right: left + right) == total(WHOLE)


def test_a_sum_is_a_balanced_tree():
    """Not a running sum, as bits show: 1 is lost beside 1e100 on both sides."""
    values = [1.0, 1e100, -1e100, 1.0]
    assert sum(values) == 1.0
    assert pairwise(values, lambda left, right: left + right) == 0.0
    tree = pairwise(list("abcdefgh"), lambda left, right: f"({left}{right})")
    assert tree == "(((ab)(cd))((ef)(gh)))"


def test_a_sum_keeps_few_terms():
    alive = most = 0

    def term():
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return 1

    def add(left, right):
        nonlocal alive
        alive -= 1
        return left + right

    assert pairwise((term() for _ in range(MOST)), add) == MOST
    assert most == 9


def test_what_is_empty_adds_nothing():
    def refuse(left, right):
        raise AssertionError("nothing to add")

    assert pairwise([None] * 4, refuse) is None
    assert pairwise([None, None, "x", None], refuse) == "x"


@pytest.mark.parametrize("terms", [0, 3, 6])
def test_a_sum_needs_a_power_of_two(terms):
    with pytest.raises(ValueError, match="power of two"):
        pairwise([1] * terms, lambda left, right: left + right)


def test_shards_of_a_command():
    assert require_shard(3, 4) == (3, 4)
    assert require_shard(0, 1) == WHOLE
    for index, of, what in (
        (0, 3, "3 is not one of 1, 2, 4"),
        (0, 0, "0 is not one of"),
        (0, 2 * MOST, "is not one of"),
        (4, 4, "no shard 4 of 4; expected 0 to 3"),
        (-1, 4, "no shard -1 of 4"),
    ):
        with pytest.raises(UserError, match=what):
            require_shard(index, of)


def labels(shards: int = 4, **changes) -> dict[Path, Label]:
    """Labels of the parts of one whole, in an order of their own; `changes` are of the second."""
    made = {
        Path(f"part-{i}"): {"made_from": "ab", "shard": i, "shards": shards, "count": 9}
        for i in reversed(range(shards))
    }
    made[Path("part-1")] |= changes
    return {path: Label(**fields) for path, fields in made.items()}


def test_parts_are_put_in_order():
    assert in_order(labels(), "ab") == [Path(f"part-{i}") for i in range(4)]


@pytest.mark.parametrize(
    ("given_labels", "what"),
    [
        (labels(made_from="cd"), "part-1: made from other inputs"),
        (labels(shards=4, count=8), "part-1: one of 4 shards of 8 items, but part-3 is one of 4"),
        (labels(shard=2), "part-1: shard 2, as is part-2"),
        (labels(shard=7), "shard 1 of 4 is missing"),
        ({}, "no part is given"),
        ({k: v for k, v in labels().items() if v.shard != 2}, "shard 2 of 4 is missing"),
    ],
)
def test_parts_that_make_no_whole_are_one_line(given_labels, what):
    with pytest.raises(UserError, match=what) as caught:
        in_order(given_labels, "ab")
    assert "\n" not in str(caught.value)
