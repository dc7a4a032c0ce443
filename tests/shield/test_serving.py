"""The served ranking by hand, and the files it is read from."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.shield.serving import (
    ReadOut,
    load_readout,
    load_states,
    served_scores,
    top_items,
)


def test_served_scores_by_hand():
    """s = (1, 2), W h = (3 - 1, 2 * 1) = (2, 2), gamma 1/2: state (2, 3)."""
    readout = ReadOut(np.array([[1.0, -1.0], [0.0, 2.0]], dtype=np.float32), 0.5)
    users, hidden = np.array([[1.0, 2.0]]), np.array([[3.0, 1.0]])
    items = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, -1.0]])
    got = served_scores(*(x.astype(np.float32) for x in (users, hidden, items)), readout)
    assert got.tolist() == [[0.0, 2.0, -2.0]]
    assert got.dtype == np.float64


def test_gamma_zero_is_the_ranker_alone():
    rng = np.random.default_rng(0)
    users, hidden, items = (rng.normal(size=s).astype(np.float32) for s in ((4, 3), (4, 5), (7, 3)))
    got = served_scores(users, hidden, items, ReadOut(rng.normal(size=(3, 5)), 0.0))
    np.testing.assert_array_equal(got, users.astype(np.float64) @ items.T.astype(np.float64))


def test_prefixes_and_requests(world):
    serving = world.serving()
    for user in serving.roles.train[:3].tolist():
        request = serving.request(user, 4)
        assert request.prompt[: len(request.prefix)] == request.prefix == serving.prefix(user)
        assert request.about.title == "Harbor Road 4"
        # The history before the test split ends with the validation item.
        (last,) = serving.splits.valid[user]
        assert request.history[-1].title == f"Harbor Road {last}"
        assert serving.request(user, 4, "valid").history[-1].title != request.history[-1].title


def test_top_items_leave_out_what_was_seen(world):
    serving = world.serving()
    users = serving.roles.heldout
    scores = np.tile(np.arange(serving.splits.n_items + 1.0), (len(users), 1))
    for user, items in zip(users, top_items(scores, serving.splits, "test", users, 4), strict=True):
        unseen = set(range(1, 21)) - set(serving.splits.history("test", user).tolist())
        assert items.tolist() == sorted(unseen, reverse=True)[:4]


@pytest.mark.parametrize(("load", "what"), [(load_states, "ranker"), (load_readout, "read-out")])
def test_files_of_another_kind_are_one_line(tmp_path, load, what):
    path = tmp_path / "file.safetensors"
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load(path)
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load(path)
    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(UserError, match=f"no tensor .*{what}") as caught:
        load(path)
    assert "\n" not in str(caught.value)
