"""The model: causality, padding, learning, and the checkpoint."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional as F

from shielded_recrl.errors import UserError
from shielded_recrl.ranker.batches import pad
from shielded_recrl.ranker.losses import full_softmax
from shielded_recrl.ranker.sasrec import Checkpoint, Dropout, SASRec, load, save, user_states
from shielded_recrl.ranker.settings import RankerSettings

SETTINGS = RankerSettings(dim=8, heads=2, max_length=7, dropout=0.0)
N_ITEMS = 20


@pytest.fixture(scope="module")
def model() -> SASRec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SASRec(N_ITEMS, SETTINGS).eval()


items_rows = st.lists(st.integers(1, N_ITEMS), min_size=2, max_size=7)


@settings(max_examples=40, deadline=None)
@given(row=items_rows, data=st.data())
def test_a_later_item_does_not_alter_an_earlier_state(model, row, data):
    cut = data.draw(st.integers(1, len(row) - 1))
    tail = data.draw(
        st.lists(st.integers(0, N_ITEMS), min_size=len(row) - cut, max_size=len(row) - cut)
    )
    with torch.no_grad():
        states = model(torch.tensor([row, row[:cut] + tail]))
    torch.testing.assert_close(states[0, :cut], states[1, :cut], rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(row=items_rows, data=st.data())
def test_an_earlier_item_does_alter_a_later_state(model, row, data):
    place = data.draw(st.integers(0, len(row) - 1))
    other = row.copy()
    other[place] = row[place] % N_ITEMS + 1
    with torch.no_grad():
        states = model(torch.tensor([row, other]))
    assert (states[0, -1] - states[1, -1]).abs().max() > 1e-5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, N_ITEMS), max_size=12), min_size=1, max_size=6))
def test_states_do_not_depend_on_padding_or_batch(model, rows):
    """Alone and unpadded, cut to the most recent, or in any batch: the same state; empty is zero."""
    sequences = [np.array(row, dtype=np.int32) for row in rows]
    together = user_states(model, sequences, batch_size=4)
    for row, state in zip(rows, together, strict=True):
        if row:
            with torch.no_grad():
                alone = model(torch.tensor([row[-SETTINGS.max_length :]]))[0, -1]
            np.testing.assert_allclose(state, alone, rtol=0, atol=1e-6)
        else:
            assert not state.any()


def loss_of(model: SASRec, items: torch.Tensor) -> torch.Tensor:
    known = items[:, 1:] > 0
    return full_softmax(model(items[:, :-1])[known], model.items.weight, items[:, 1:][known])


def test_padding_gets_no_gradient_and_stays_zero(model):
    copy = SASRec(N_ITEMS, SETTINGS)
    copy.load_state_dict(model.state_dict())
    loss_of(copy, pad([np.array([3, 1, 2]), np.array([5, 4])], 8)).backward()
    assert not copy.items.weight[0].any()
    assert not copy.items.weight.grad[0].any()
    assert copy.items.weight.grad[1:].any(dim=1).all()


def test_one_batch_is_learned_by_heart():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SASRec(N_ITEMS, SETTINGS)
    items = pad([np.array([1, 2, 3, 4]), np.array([9, 8, 7]), np.array([5, 11])], 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = loss_of(model, items).item()
    for _ in range(80):
        optimizer.zero_grad()
        loss = loss_of(model, items)
        loss.backward()
        optimizer.step()
    # An untrained model is near the uniform guess; position 0 alone tells the three rows apart.
    assert before > 0.8 * np.log(N_ITEMS)
    assert loss_of(model, items).item() < 0.05
    assert model.logits(model(items[:1, :3]))[0].argmax(-1).tolist() == [1, 2, 3]


def test_attention_is_the_textbook_formula(model):
    """One block against softmax(QK^T / sqrt(d_head)) V written out."""
    block = model.blocks[0]
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = block.query_key_value(block.attention_norm(x))[0].split(8, dim=-1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = q[:, head] @ k[:, head].T / 4**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
        heads.append(F.softmax(scores, dim=-1) @ v[:, head])
    y = x[0] + block.output(torch.cat(heads, dim=-1))
    torch.testing.assert_close(block(x)[0], y + block.network(block.network_norm(y)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.0])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    dropout = Dropout(p)
    x = torch.ones(200, 333)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = dropout(x), dropout(x)
    share = round(256 * p) / 256
    # Four standard deviations of a share out of 66,600.
    assert (first == 0).float().mean().item() == pytest.approx(
        share, abs=4 * (0.25 / x.numel()) ** 0.5
    )
    assert first.max().item() == pytest.approx(1 / (1 - share))
    assert p == 0 or not torch.equal(first, second)
    assert torch.equal(dropout.eval()(x), x)


def test_dropout_passes_the_gradient_where_it_passes_the_value():
    x = torch.randn(7, 5, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        y = Dropout(0.5)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)


def test_checkpoint_round_trip(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, model.state_dict(), Checkpoint(SETTINGS, N_ITEMS, "0" * 64, 3, 5))
    again, checkpoint = load(path)
    assert checkpoint == Checkpoint(SETTINGS, N_ITEMS, "0" * 64, 3, 5)
    assert not again.training
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_a_bad_checkpoint_is_named(model, tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no such file"):
        load(path)
    save(path, model.state_dict(), Checkpoint(SETTINGS, N_ITEMS, "0" * 64, 3, 5))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load(path)
    wider = SETTINGS.model_dump() | {"dim": 16}
    about = {"settings": wider, "n_items": N_ITEMS, "seed": 3, "best_epoch": 5}
    for metadata in (None, {"sasrec": "{"}, {"sasrec": json.dumps(about)}):
        save_file(model.state_dict(), path, metadata)
        with pytest.raises(UserError, match="not a checkpoint of this ranker") as error:
            load(path)
        assert "\n" not in str(error.value)
