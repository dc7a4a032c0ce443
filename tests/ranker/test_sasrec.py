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
from shielded_recrl.ranker.sasrec import Checkpoint, SASRec, batches, load, pad, save, user_states
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


def test_loss_is_the_mean_over_known_next_items(model):
    items = pad([np.array([3, 1, 2]), np.array([5, 4])], 8)
    assert items.tolist() == [[3, 1, 2], [5, 4, 0]]
    terms = []
    for row in ([3, 1, 2], [5, 4]):
        for t in range(1, len(row)):
            scores = model(torch.tensor([row[:t]]))[0, -1] @ model.items.weight.T
            # Class 0 is padding: no probability goes to it.
            terms.append(torch.logsumexp(scores[1:], 0) - scores[row[t]])
    torch.testing.assert_close(model.loss(items), torch.stack(terms).mean())


def test_padding_gets_no_gradient_and_stays_zero(model):
    copy = SASRec(N_ITEMS, SETTINGS)
    copy.load_state_dict(model.state_dict())
    copy.loss(pad([np.array([3, 1, 2]), np.array([5, 4])], 8)).backward()
    assert not copy.items.weight[0].any()
    assert not copy.items.weight.grad[0].any()
    assert copy.items.weight.grad[1:].any(dim=1).all()


def test_one_batch_is_learned_by_heart():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SASRec(N_ITEMS, SETTINGS)
    items = pad([np.array([1, 2, 3, 4]), np.array([9, 8, 7]), np.array([5, 11])], 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = model.loss(items).item()
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(items)
        loss.backward()
        optimizer.step()
    # An untrained model is near the uniform guess; position 0 alone tells the three rows apart.
    assert before > 0.8 * np.log(N_ITEMS)
    assert model.loss(items).item() < 0.05
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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(1, 5), st.integers(0, 99))
def test_an_epoch_visits_every_sequence_once(lengths, size, seed):
    sequences = [np.full(length, i) for i, length in enumerate(lengths)]
    groups = list(batches(sequences, size, torch.Generator().manual_seed(seed)))
    assert sorted(int(row[0]) for group in groups for row in group) == list(range(len(lengths)))
    assert max(map(len, groups)) <= size


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
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole safetensors file"):
        load(path)
    wider = SETTINGS.model_dump() | {"dim": 16}
    about = {"settings": wider, "n_items": N_ITEMS, "seed": 3, "best_epoch": 5}
    for metadata in (None, {"sasrec": "{"}, {"sasrec": json.dumps(about)}):
        save_file(model.state_dict(), path, metadata)
        with pytest.raises(UserError, match="not a checkpoint of this ranker") as error:
            load(path)
        assert "\n" not in str(error.value)
