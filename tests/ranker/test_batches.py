"""Windows, buckets and padding: nothing is lost, nothing is met twice."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.ranker.batches import batches, pad, windows


def test_padding_is_on_the_right_and_keeps_the_latest():
    assert pad([np.array([3, 1, 2]), np.array([5, 4])], 8).tolist() == [[3, 1, 2], [5, 4, 0]]
    assert pad([np.array([3, 1, 2]), np.array([5])], 2).tolist() == [[1, 2], [5, 0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 99))
def test_every_item_but_a_users_first_is_a_target_once(lengths, length, seed):
    sequences = [1000 * user + np.arange(n) for user, n in enumerate(lengths)]
    cut = windows(sequences, length, np.random.default_rng(seed))
    assert all(2 <= len(window) <= length + 1 for window in cut)
    assert all((np.diff(window) == 1).all() for window in cut)
    targets = [item for window in cut for item in window[1:]]
    assert sorted(targets) == sorted(item for row in sequences for item in row[1:])


def test_the_cuts_move_and_a_short_sequence_is_whole():
    rows = [np.arange(30), np.arange(6)]
    cuts = {tuple(map(len, windows(rows, 5, np.random.default_rng(seed)))) for seed in range(20)}
    assert len(cuts) >= 4
    assert all(lengths[-1] == 6 for lengths in cuts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 99))
def test_an_epoch_visits_every_sequence_once(lengths, size, seed):
    sequences = [np.full(length, i) for i, length in enumerate(lengths)]
    groups = list(batches(sequences, size, np.random.default_rng(seed)))
    assert sorted(int(row[0]) for group in groups for row in group) == list(range(len(lengths)))
    assert max(map(len, groups)) <= size


def test_batches_hold_sequences_of_like_length():
    rng = np.random.default_rng(0)
    sequences = [np.zeros(n) for n in rng.integers(1, 200, 400)]
    padded = sum(len(group) * max(map(len, group)) for group in batches(sequences, 16, rng))
    assert padded < 1.15 * sum(map(len, sequences))
