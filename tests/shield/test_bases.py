"""Bases: second moments against explicit products, ranks by hand, files that are whole."""

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.shield.bases import input_moments, leading_basis, load_bases, save_bases
from tiny_world import prompts, tiny_llama

ROWS = prompts(5, 2, 9, seed=1)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def collected(model):
    return input_moments(model, ROWS)


def close(moment, expected):
    """Equal to the rounding of fp32 inputs."""
    torch.testing.assert_close(moment, expected, rtol=0, atol=1e-6 * float(torch.trace(expected)))


def test_moments_equal_the_explicit_product(model, collected):
    """X^T X of the inputs of one late module, caught by a hook, row by row without padding."""
    moments, groups = collected
    name, caught = "model.layers.1.mlp.down_proj", []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, arguments: caught.append(arguments[0][0])
    )
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    handle.remove()
    x = torch.cat(caught).double()
    assert len(x) == sum(map(len, ROWS))
    close(moments[groups[name]], x.T @ x)


def test_the_first_input_is_the_normed_embedding(model, collected):
    moments, groups = collected
    norm = model.model.layers[0].input_layernorm
    x = norm(model.model.embed_tokens(torch.tensor([t for row in ROWS for t in row]))).double()
    moment = moments[groups["model.layers.0.self_attn.q_proj"]]
    close(moment, x.T @ x)


def test_modules_that_read_the_same_tensor_share_a_group(collected):
    moments, groups = collected
    assert len(groups) == 2 * 7
    assert len(moments) == 2 * 4
    for layer in ("model.layers.0", "model.layers.1"):
        q, k, v, o = (groups[f"{layer}.self_attn.{x}_proj"] for x in "qkvo")
        gate, up, down = (groups[f"{layer}.mlp.{x}_proj"] for x in ("gate", "up", "down"))
        assert q == k == v == f"{layer}.self_attn.q_proj"
        assert gate == up == f"{layer}.mlp.gate_proj"
        assert len({q, o, gate, down}) == 4
    assert not any("lm_head" in name for name in groups)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_padding_and_batches_change_nothing(model, collected, batch_size):
    moments, groups = input_moments(model, ROWS, batch_size=batch_size)
    assert groups == collected[1]
    for group, moment in moments.items():
        close(moment, collected[0][group])


def test_no_hook_stays_behind(model, collected):
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_rank_by_hand():
    """Eigenvalues 6, 3, 1: shares .6, .9, 1."""
    vectors = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )[0]
    moment = vectors @ torch.diag(torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)) @ vectors.T
    ranks = {
        energy: leading_basis(moment, energy).shape[1] for energy in (0.5, 0.61, 0.89, 0.95, 1)
    }
    assert ranks == {0.5: 1, 0.61: 2, 0.89: 2, 0.95: 3, 1: 3}
    first = leading_basis(moment, 0.5)[:, 0]
    assert abs(float(first.double() @ vectors[:, 0])) == pytest.approx(1, abs=1e-6)


@given(
    seed=st.integers(0, 10**6),
    d=st.integers(2, 16),
    tokens=st.integers(1, 24),
    energy=st.floats(0.05, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_a_basis_is_orthonormal_and_holds_the_energy_asked_for(seed, d, tokens, energy):
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(seed)).double()
    moment = x.T @ x
    basis = leading_basis(moment, energy).double()
    k = basis.shape[1]
    torch.testing.assert_close(
        basis.T @ basis, torch.eye(k, dtype=torch.float64), atol=1e-5, rtol=0
    )

    def held(q):
        return float(torch.trace(q.T @ moment @ q) / torch.trace(moment))

    assert held(basis) >= energy - 1e-6
    if energy < 1 and k > 1:
        assert held(basis[:, :-1]) < energy + 1e-6


@given(seed=st.integers(0, 10**6), d=st.integers(2, 32), tokens=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_energy_one_keeps_the_numerical_rank(seed, d, tokens):
    """Inputs come in fp32, repeated: the span is complete, and no direction of noise is in it."""
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(seed))
    x = torch.cat([x, x]).double()
    basis = leading_basis(x.T @ x, 1.0)
    assert basis.shape[1] == min(d, tokens)
    outside = x - (x @ basis.double()) @ basis.double().T
    assert outside.norm() < 1e-5 * x.norm()


@pytest.fixture
def path(tmp_path):
    bases = {"a.q": torch.eye(4)[:, :2].contiguous(), "a.o": torch.eye(3)}
    groups = {"a.q": "a.q", "a.k": "a.q", "a.o": "a.o"}
    path = tmp_path / "bases.safetensors"
    save_bases(path, bases, groups, energy=0.9, precision="nf4", prefixes=[(1, 2), (3,)])
    return path


def test_round_trip(path):
    from safetensors import safe_open

    got = load_bases(path)
    assert got.keys() == {"a.q", "a.k", "a.o"}
    assert torch.equal(got["a.k"], torch.eye(4)[:, :2])
    assert got["a.k"] is got["a.q"]
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["bases"])
    assert (metadata["energy"], metadata["precision"]) == (0.9, "nf4")
    prompts_digest = hashlib.sha256(json.dumps([[1, 2], [3]]).encode()).hexdigest()
    assert metadata["prompts_sha256"] == prompts_digest


@pytest.mark.parametrize("kept", [0, 9, 200, -1])
def test_a_damaged_file_is_one_line(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError) as caught:
        load_bases(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metadata", [None, {"bases": "{}"}, {"bases": "{"}, {"bases": '{"groups": {"a": "gone"}}'}]
)
def test_a_file_of_another_kind_is_one_line(tmp_path, metadata):
    from safetensors.torch import save_file

    path = tmp_path / "bases.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(UserError, match="not a readable bases file"):
        load_bases(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not a readable bases file"):
        load_bases(tmp_path / "none.safetensors")
