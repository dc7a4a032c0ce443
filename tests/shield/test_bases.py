"""Bases: second moments and score weights against explicit products, ranks by hand, whole files."""

import hashlib
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base, load_tokenizer
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.lm import adapter_parameters, load_adapter, prefix_states, trunk
from shielded_recrl.shield import bases as module
from shielded_recrl.shield import moments as moments_module
from shielded_recrl.shield.bases import Bases, collect_bases
from shielded_recrl.shield.basis import Basis
from shielded_recrl.shield.digests import weights_sha256
from shielded_recrl.shield.moments import Moment, leading_basis, probe_directions, second_moments
from shielded_recrl.shield.serving import RankingHead
from tiny_world import call, prompts, save_model, tiny_llama, with_adapter

CPU = torch.device("cpu")
ROWS = prompts(5, 2, 9, seed=1)
ALL = range(2)
LAST = "model.layers.1"


def head_of(width: int = 32, items: int = 3) -> RankingHead:
    generator = torch.Generator().manual_seed(4)
    return RankingHead(
        torch.randn(items, 4, generator=generator), torch.randn(4, width, generator=generator), 0.5
    )


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def collected(model):
    return second_moments(model, ROWS, ALL)


def caught_inputs(model, name: str, rows=ROWS) -> list[torch.Tensor]:
    """Inputs [t, d] of a module, prompt by prompt without padding, float64."""
    caught = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, arguments: caught.append(arguments[0][0].detach().double())
    )
    with torch.no_grad():
        for row in rows:
            trunk(model)(torch.tensor([row]))
    handle.remove()
    return caught


def close(moment, expected):
    """Equal to the rounding of fp32 inputs."""
    torch.testing.assert_close(
        moment.double(), expected.double(), rtol=0, atol=1e-6 * float(torch.trace(expected))
    )


def same_span(a: Basis, b: Basis, atol: float = 1e-4) -> None:
    identity = torch.eye(a.width)
    assert a.rank == b.rank
    torch.testing.assert_close(a.inside(identity), b.inside(identity), atol=atol, rtol=0)


def module_sets(groups: dict[str, str], block: str) -> set[frozenset[str]]:
    """The last parts of the names of a block's modules, those that share a group together."""
    names = [name for name in groups if name.startswith(block)]
    return {
        frozenset(n.rsplit(".", 1)[1] for n in names if groups[n] == group)
        for group in {groups[name] for name in names}
    }


def sets(*groups: str) -> set[frozenset[str]]:
    return {frozenset(group.split()) for group in groups}


# Second moments


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj", f"{LAST}.self_attn.v_proj"])
def test_moments_equal_the_explicit_product(model, collected, name):
    moments, groups = collected
    x = torch.cat(caught_inputs(model, name))
    assert len(x) == sum(map(len, ROWS))
    close(moments[groups[name]].full(), x.T @ x)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_where_only_the_read_out_matters_only_its_inputs_count(model, collected, name):
    moments, groups = collected
    x = torch.stack([rows[-1] for rows in caught_inputs(model, f"{LAST}.{name}")])
    close(moments[groups[f"{LAST}.{name}"]].full(), x.T @ x)


def test_the_first_input_is_the_normed_embedding(model, collected):
    moments, groups = collected
    norm = model.model.layers[0].input_layernorm
    x = norm(model.model.embed_tokens(torch.tensor([t for row in ROWS for t in row])))
    close(moments[groups["model.layers.0.self_attn.q_proj"]].full(), x.T @ x)


def test_modules_that_read_the_same_tensor_share_a_group(collected):
    """But for the last block's q, which matters at the read-out only; k and v see every token."""
    moments, groups = collected
    assert len(groups) == 2 * 7
    assert set(groups.values()) == set(moments)
    attention, mlp = ("o_proj",), ("gate_proj up_proj", "down_proj")
    assert module_sets(groups, "model.layers.0") == sets("q_proj k_proj v_proj", *attention, *mlp)
    assert module_sets(groups, LAST) == sets("q_proj", "k_proj v_proj", *attention, *mlp)
    assert all(groups[group] == group for group in moments)
    assert not any("lm_head" in name for name in groups)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_padding_and_batches_change_nothing(model, collected, batch_size):
    moments, groups = second_moments(model, ROWS, ALL, batch_size=batch_size)
    assert groups == collected[1]
    for group, moment in moments.items():
        close(moment.full(), collected[0][group].full())


def test_few_rows_and_many_agree():
    """Up to d/2 rows are kept as they are; more are summed."""
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    few, many = Moment(16, 8), Moment(16, 9)
    for moment in (few, many):
        moment.add(x[:3])
        moment.add(x[3:])
    assert few.matrix is None
    assert many.rows is None
    close(few.full(), many.full())
    for energy, rank in ((0.8, None), (1.0, None), (0.5, 3)):
        same_span(few.leading(energy, rank, 0), many.leading(energy, rank, 0))


def test_many_rows_are_summed_unless_the_span_is_complete(monkeypatch):
    monkeypatch.setattr(moments_module, "EIGH_WIDTH", 8)
    assert Moment(64, 8).rows == []
    assert Moment(64, 9).rows is None
    assert Moment(64, 9, complete=True).rows == []
    assert Moment(64, 33, complete=True).rows is None


def test_moments_are_in_float64_where_it_is_cheap_or_needed(monkeypatch):
    monkeypatch.setattr(moments_module, "DOUBLE_WIDTH", 16)
    assert Moment(16, 100).dtype == torch.float64
    assert Moment(32, 100).dtype == torch.float32
    assert Moment(32, 100, complete=True).dtype == torch.float64
    assert Moment(32, 16).dtype == torch.float64


def test_nothing_stays_behind():
    """Hooks, modes and the wish for gradients are as they were, and an adapter is on again."""
    model = with_adapter(tiny_llama()).train()
    wanted = {name: weight.requires_grad for name, weight in model.named_parameters()}
    states = prefix_states(model, ROWS)
    collect_bases(model, ROWS, weight="score", head=head_of())
    assert wanted == {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert all(module.training for module in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in trunk(model).modules())
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(prefix_states(model, ROWS), states)


# Score weights


def jacobian_squares(model, name: str, row: tuple[int, ...], directions=None) -> torch.Tensor:
    """||d score / d y_t||^2 [t] of a module's output, by autograd's explicit Jacobian.

    With directions [p, I], the mean of ||d <v, score> / d y_t||^2 over them instead.
    """
    ids, head = torch.tensor([row]), head_of()
    out = model.get_submodule(name).out_features

    def scores(change):
        handle = model.get_submodule(name).register_forward_hook(lambda _, __, y: y + change)
        try:
            return head(trunk(model)(ids).last_hidden_state[:, -1])[0]
        finally:
            handle.remove()

    jacobian = torch.autograd.functional.jacobian(scores, torch.zeros(1, len(row), out))[:, 0]
    if directions is None:
        return jacobian.square().sum((0, 2))
    return torch.einsum("pi,itd->ptd", directions, jacobian).square().sum(2).mean(0)


def weighted_product(model, names, weigh) -> torch.Tensor:
    """sum_t w_t x_t x_t^T over the prompts, w summed over modules that share an input."""
    total = 0
    for index, x in enumerate(caught_inputs(model, names[0])):
        w = sum(weigh(name, index) for name in names).double()
        total = total + (x * w[:, None]).T @ x
    return total


GROUPS = (
    tuple(f"model.layers.0.self_attn.{x}_proj" for x in "qkv"),
    ("model.layers.0.mlp.down_proj",),
    (f"{LAST}.self_attn.q_proj",),
    (f"{LAST}.self_attn.k_proj", f"{LAST}.self_attn.v_proj"),
    (f"{LAST}.mlp.gate_proj", f"{LAST}.mlp.up_proj"),
)


@pytest.mark.parametrize("names", GROUPS)
def test_score_weights_are_those_of_the_explicit_jacobian(model, names):
    """For the very probes drawn: an identity."""
    probes, seed = 2, 7
    moments, groups = second_moments(
        model, ROWS, ALL, head=head_of(), seed=seed, probes=probes, batch_size=2
    )
    assert {name for name in groups if groups[name] == names[0]} == set(names)
    drawn = [probe_directions(seed, place, probes, 3) for place in range(len(ROWS))]
    expected = weighted_product(
        model, names, lambda name, i: jacobian_squares(model, name, ROWS[i], drawn[i])
    )
    torch.testing.assert_close(
        moments[names[0]].full(), expected, rtol=0, atol=1e-5 * float(torch.trace(expected))
    )


def test_probes_estimate_the_jacobian_without_bias(model):
    names = GROUPS[0]
    moments, _ = second_moments(model, ROWS, ALL, head=head_of(), probes=600)
    expected = weighted_product(
        model, names, lambda name, i: jacobian_squares(model, name, ROWS[i])
    )
    got = moments[names[0]].full()
    assert float((got - expected).norm() / expected.norm()) < 0.05


def test_any_callable_is_a_head(model):
    def nonlinear(hidden):
        return torch.tanh(head_of()(hidden))

    linear = collect_bases(model, ROWS, weight="score", head=head_of(), rank=4)
    other = collect_bases(model, ROWS, weight="score", head=nonlinear, rank=4)
    group = "model.layers.0.self_attn.q_proj"
    assert other.bases[group].rank == 4
    assert linear.bases[group].leakage(other.bases[group].matrix.T) < 0.9999


def test_a_head_that_scores_nothing_protects_nothing(model, tmp_path):
    silent = RankingHead(torch.ones(3, 4), torch.zeros(4, 32), 1.0)
    bases = collect_bases(model, ROWS, weight="score", head=silent)
    assert {basis.rank for basis in bases.bases.values()} == {0}
    bases.save(tmp_path / "bases.safetensors")
    loaded = Bases.load(tmp_path / "bases.safetensors").modules[f"{LAST}.mlp.up_proj"]
    assert torch.equal(loaded.outside(torch.ones(2, 32)), torch.ones(2, 32))


# Ranks


def spectrum(values, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A second moment with these eigenvalues, float64, and its eigenvectors."""
    d, generator = len(values), torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    values = torch.as_tensor(values, dtype=torch.float64)
    return (vectors * values) @ vectors.T, vectors


def test_rank_by_hand():
    """Eigenvalues 6, 3, 1: shares .6, .9, 1."""
    moment, vectors = spectrum([6.0, 3.0, 1.0])
    by_energy = {e: leading_basis(moment, e) for e in (0.5, 0.61, 0.89, 0.95, 1)}
    assert {e: b.rank for e, b in by_energy.items()} == {0.5: 1, 0.61: 2, 0.89: 2, 0.95: 3, 1: 3}
    captured = {e: round(b.energy, 9) for e, b in by_energy.items()}
    assert captured == {0.5: 0.6, 0.61: 0.9, 0.89: 0.9, 0.95: 1, 1: 1}
    assert {e: b.complement for e, b in by_energy.items()} == {
        0.5: False, 0.61: True, 0.89: True, 0.95: True, 1: True
    }  # fmt: skip
    first = by_energy[0.5].matrix[:, 0].double()
    assert abs(float(first @ vectors[:, 0])) == pytest.approx(1, abs=1e-6)
    by_rank = {k: leading_basis(moment, 0.5, rank=k) for k in (1, 2, 3, 9)}
    assert {k: b.rank for k, b in by_rank.items()} == {1: 1, 2: 2, 3: 3, 9: 3}
    assert by_rank[2].energy == pytest.approx(0.9)
    deficient, _ = spectrum([6.0, 3.0, 0.0, 0.0])
    assert leading_basis(deficient, 0.5, rank=4).rank == 2
    assert leading_basis(deficient, 1.0).rank == 2


@given(
    seed=st.integers(0, 10**6),
    d=st.integers(2, 16),
    tokens=st.integers(1, 24),
    energy=st.floats(0.05, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_a_basis_is_orthonormal_and_holds_the_energy_asked_for(seed, d, tokens, energy):
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(seed))
    moment = Moment(d, tokens)
    moment.add(x)
    basis = moment.leading(energy, None, 0)
    m = basis.matrix.shape[1]
    assert m == min(basis.rank, d - basis.rank)
    torch.testing.assert_close(basis.matrix.T @ basis.matrix, torch.eye(m), atol=1e-5, rtol=0)
    held = float(basis.inside(x).square().sum() / x.square().sum())
    assert held == pytest.approx(basis.energy, abs=1e-5)
    assert held >= energy - 1e-5
    if energy < 1 and basis.rank > 1:
        assert moment.leading(energy, basis.rank - 1, 0).energy < energy


@given(seed=st.integers(0, 10**6), d=st.integers(2, 32), tokens=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_energy_one_keeps_the_numerical_rank(seed, d, tokens):
    """Inputs come in fp32, repeated: the span is complete, and no direction of noise is in it."""
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(seed))
    x = torch.cat([x, x])
    moment = Moment(d, len(x))
    moment.add(x)
    basis = moment.leading(1.0, None, 0)
    assert basis.rank == min(d, tokens)
    assert basis.outside(x).norm() < 1e-5 * x.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("energy", "rank"), [(0.9, None), (0.99, None), (0.5, 40)])
def test_randomised_equals_full_where_the_spectrum_falls(dtype, energy, rank):
    """Eigenvalues 1/i^2, width 512: the dimension grows from 32 by doubling."""
    moment, _ = spectrum(1 / torch.arange(1, 513, dtype=torch.float64) ** 2)
    moment = moment.to(dtype)
    full = leading_basis(moment, energy, rank, exact=True)
    fast = leading_basis(moment, energy, rank, exact=False)
    assert abs(fast.rank - full.rank) <= 1
    assert fast.energy == pytest.approx(full.energy, abs=1e-4)
    assert not fast.complement
    q = fast.matrix.double()
    held = float(torch.trace(q.T @ moment.double() @ q) / torch.trace(moment))
    assert held == pytest.approx(fast.energy, abs=1e-5)
    assert rank is not None or held >= energy - 1e-5
    again = leading_basis(moment, energy, rank, exact=False)
    assert torch.equal(fast.matrix, again.matrix)
    leading = fast.inside(full.matrix[:, : full.rank // 2].T.contiguous())
    torch.testing.assert_close(leading.norm(dim=1), torch.ones(len(leading)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_strong_direction_hides_no_others(dtype):
    """As the few massive activations of real LMs: all others together still hold 0.5%."""
    moment, _ = spectrum([1.0, *[2e-5] * 255])
    assert leading_basis(moment.to(dtype), 0.999).rank == pytest.approx(205, abs=1)


def test_a_flat_spectrum_is_decomposed_in_full():
    """No subspace of half the width holds the energy asked for."""
    moment, _ = spectrum(torch.ones(64))
    basis = leading_basis(moment, 0.75, exact=False)
    assert basis.rank == 48
    assert basis.complement


def test_wide_moments_go_the_randomised_way(monkeypatch, model):
    full = collect_bases(model, ROWS, energy=0.9)
    monkeypatch.setattr(moments_module, "EIGH_WIDTH", 16)
    fast = collect_bases(model, ROWS, energy=0.9)
    assert fast.bases.keys() == full.bases.keys()
    for group, basis in fast.bases.items():
        same_span(basis, full.bases[group], atol=1e-3)


# Collecting


def test_what_is_noted(model):
    bases = collect_bases(model, ROWS, energy=0.9, about={"revision": "abc"})
    assert bases.about == {
        "base_sha256": weights_sha256(model),
        "precision": "fp32",
        "revision": "abc",
        "prompts_sha256": hashlib.sha256(
            json.dumps([list(row) for row in ROWS]).encode()
        ).hexdigest(),
        "tokens": sum(map(len, ROWS)),
        "energy": 0.9,
        "rank": None,
        "weight": "plain",
        "scope": "all",
    }
    assert all(0.9 <= basis.energy <= 1 for basis in bases.bases.values())
    assert bases.modules.keys() == bases.groups.keys()
    group = "model.layers.0.self_attn.q_proj"
    assert bases.modules["model.layers.0.self_attn.k_proj"] is bases.bases[group]


@pytest.mark.parametrize("weight", ["plain", "score"])
def test_windows_of_layers_change_nothing(weight):
    model, options = tiny_llama(layers=3), {"weight": weight, "head": head_of(), "energy": 0.95}
    at_once = collect_bases(model, ROWS, layers_at_a_time=3, **options)
    for layers in (1, 2):
        got = collect_bases(model, ROWS, layers_at_a_time=layers, **options)
        assert got.groups == at_once.groups
        assert got.about == at_once.about
        for group, basis in got.bases.items():
            assert torch.equal(basis.matrix, at_once.bases[group].matrix)


def test_the_last_block_alone(model):
    everything, last = (collect_bases(model, ROWS, scope=scope) for scope in ("all", "last_block"))
    assert last.groups == {m: g for m, g in everything.groups.items() if m.startswith(LAST)}
    for group, basis in last.bases.items():
        assert torch.equal(basis.matrix, everything.bases[group].matrix)


@pytest.mark.parametrize("scope", ["all", "last_block"])
def test_a_complete_span_leaves_no_protected_state_to_move(scope):
    """Fewer tokens than dimensions: an adapter outside the span moves other prompts only."""
    model = tiny_llama(width=64)
    bases = collect_bases(model, ROWS, energy=1.0, scope=scope)
    for name in ("model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj"):
        x = torch.cat(caught_inputs(model, name)).float()
        assert bases.modules[name].rank == len(x) < 64
        assert bases.modules[name].outside(x).norm() < 1e-5 * x.norm()
    before, others = prefix_states(model, ROWS), prompts(5, 4, 9, seed=8)
    before_others = prefix_states(model, others)
    adapted = with_adapter(model, moved=0.3)
    spans = bases.modules
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            parts = name.removeprefix("base_model.model.").split(".lora_")
            if "lora_A" in name and parts[0] in spans:
                weight.copy_(spans[parts[0]].outside(weight))
            elif "lora_B" in name and parts[0] not in spans:
                weight.zero_()
    torch.testing.assert_close(prefix_states(adapted, ROWS), before, atol=2e-5, rtol=0)
    assert (prefix_states(adapted, others) - before_others).abs().max() > 0.1


def test_an_adapter_that_moved_leaves_the_bases_of_its_base(model):
    adapted = with_adapter(tiny_llama(), moved=0.5)
    assert not torch.allclose(prefix_states(adapted, ROWS), prefix_states(model, ROWS), atol=0.1)
    for options in ({}, {"weight": "score", "head": head_of()}):
        ours, theirs = (
            collect_bases(model, ROWS, **options),
            collect_bases(adapted, ROWS, **options),
        )
        assert ours.groups == theirs.groups
        assert ours.about == theirs.about
        for group, basis in ours.bases.items():
            assert torch.equal(basis.matrix, theirs.bases[group].matrix)


def test_gptj():
    """Attention and MLP read the same tensor; the last block's q and MLP at the read-out only."""
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = GPTJForCausalLM(config)  # as it comes: in training mode, wanting gradients
    bases = collect_bases(model, ROWS, weight="score", head=head_of())
    first = sets("q_proj k_proj v_proj fc_in", "out_proj", "fc_out")
    last = sets("q_proj fc_in", "k_proj v_proj", "out_proj", "fc_out")
    assert module_sets(bases.groups, "transformer.h.0") == first
    assert module_sets(bases.groups, "transformer.h.1") == last
    model.eval()
    moments, groups = second_moments(model.requires_grad_(False), ROWS, range(1, 2))
    x = torch.cat(caught_inputs(model, "transformer.h.1.attn.v_proj"))
    close(moments[groups["transformer.h.1.attn.v_proj"]].full(), x.T @ x)


def test_a_fused_projection_sees_every_token():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config).requires_grad_(False).eval()
    moments, groups = second_moments(model, ROWS, ALL)
    tokens, block = sum(map(len, ROWS)), "gpt_neox.layers.1"
    assert module_sets(groups, block) == sets(
        "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"
    )
    x = torch.cat(caught_inputs(model, f"{block}.attention.query_key_value"))
    assert len(x) == tokens
    close(moments[f"{block}.attention.query_key_value"].full(), x.T @ x)
    x = torch.stack([rows[-1] for rows in caught_inputs(model, f"{block}.mlp.dense_h_to_4h")])
    close(moments[f"{block}.mlp.dense_h_to_4h"].full(), x.T @ x)


@pytest.mark.parametrize(
    ("rows", "options", "what"),
    [
        ([], {}, "at least one prompt"),
        ([(1, 2), ()], {}, "no empty one"),
        (ROWS, {"weight": "score"}, "needs a head"),
        (ROWS, {"energy": 0.0}, "energy is 0; expected a share"),
        (ROWS, {"energy": 1.5}, "energy is 1.5; expected a share"),
    ],
)
def test_bad_requests_are_one_line(model, rows, options, what):
    with pytest.raises(UserError, match=what) as caught:
        collect_bases(model, rows, **options)
    assert "\n" not in str(caught.value)


def test_a_layer_that_runs_twice_is_refused():
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj = model.model.layers[0].mlp.gate_proj
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.gate_proj runs twice"):
        collect_bases(model, ROWS)


def test_inputs_that_are_not_finite_are_one_line():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(
        UserError, match=r"inputs of model\.layers\.0\.mlp\.down_proj are not finite"
    ):
        collect_bases(model, ROWS)


# Quantised bases, and what tells bases of different weights apart


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A base wide enough for blocks of 64, and an adapter on it."""
    folder, tokenizer = tmp_path_factory.mktemp("wide"), load_tokenizer(world.base)
    save_model(tiny_llama(len(tokenizer), width=64), tokenizer, folder / "base")
    save_adapter(with_adapter(tiny_llama(len(tokenizer), width=64)), folder / "adapter")
    return folder


@pytest.mark.parametrize("precision", ["nf4", "int8", "bf16"])
def test_bases_are_those_of_the_precision_served(folder, precision):
    if precision in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes")
    model = load_base(folder / "base", precision, CPU)
    exact = load_base(folder / "base", "fp32", CPU)
    plain = collect_bases(model, ROWS, energy=1.0)
    assert plain.about["precision"] == precision
    assert plain.groups == collect_bases(exact, ROWS, energy=1.0).groups
    group = f"{LAST}.self_attn.k_proj"
    x, other = (torch.cat(caught_inputs(m, group)).float() for m in (model, exact))
    # Batches and single rows agree to the rounding of the arithmetic, not to that of fp32.
    assert plain.bases[group].outside(x).norm() < 0.03 * x.norm()
    assert plain.bases[group].outside(other).norm() > 1e-3 * other.norm()
    scored = collect_bases(model, ROWS, weight="score", head=head_of(64), rank=3)
    assert all(basis.rank == 3 for basis in scored.bases.values())


def test_gradients_through_an_nf4_base_survive_collecting(folder):
    pytest.importorskip("bitsandbytes")
    model = load_adapter(load_base(folder / "base", "nf4", CPU), folder / "adapter", trainable=True)
    ids = torch.tensor(prompts(4, 12, 12))

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return torch.cat([w.grad.float().flatten() for w in adapter_parameters(model).values()])

    before = gradient()
    collect_bases(model, ROWS)
    collect_bases(model, ROWS, weight="score", head=head_of(64))
    assert torch.equal(gradient(), before)


def test_a_4_bit_base_that_was_repacked_is_refused(folder):
    """Some CPUs repack the weights in a forward pass in evaluation mode, and round their scales."""
    bnb = pytest.importorskip("bitsandbytes")
    model = load_base(folder / "base", "nf4", CPU)
    model.eval()
    prefix_states(model, ROWS)
    layers = [layer for layer in model.modules() if isinstance(layer, bnb.nn.Linear4bit)]
    if not any(getattr(x.weight.quant_state, "packing_format_for_cpu", False) for x in layers):
        pytest.skip("this CPU does not repack")
    for refused in (weights_sha256, lambda model: collect_bases(model, ROWS)):
        with pytest.raises(UserError, match=r"q_proj: bitsandbytes repacked .* load the base"):
            refused(model)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_a_digest_is_that_of_the_base(folder, precision):
    if precision in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes")
    digest = weights_sha256(load_base(folder / "base", precision, CPU))
    base = load_base(folder / "base", precision, CPU)
    assert weights_sha256(base) == digest
    adapted = load_adapter(base, folder / "adapter", trainable=True)
    assert weights_sha256(adapted) == digest
    prefix_states(adapted, ROWS)
    with torch.no_grad():
        for weight in adapter_parameters(adapted).values():
            weight.add_(1)
    assert weights_sha256(adapted) == digest


def test_digests_tell_weights_and_precisions_apart(folder):
    pytest.importorskip("bitsandbytes")
    digests = {
        weights_sha256(load_base(folder / "base", precision, CPU))
        for precision in ("fp32", "bf16", "int8", "nf4")
    }
    model = load_base(folder / "base", "fp32", CPU)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    assert len(digests | {weights_sha256(model)}) == 5


# Random bases and files


@pytest.fixture(scope="module")
def bases(model) -> Bases:
    return collect_bases(model, ROWS, energy=0.95)


def test_random_bases_differ_in_direction_only(bases):
    control, again, other = (bases.randomised(seed) for seed in (1, 1, 2))
    assert (control.groups, control.about) == (bases.groups, bases.about)
    for group, basis in bases.bases.items():
        drawn = control.bases[group]
        assert (drawn.rank, drawn.width) == (basis.rank, basis.width)
        assert math.isnan(drawn.energy)
        assert torch.equal(drawn.matrix, again.bases[group].matrix)
        if 0 < basis.rank < basis.width:
            assert not torch.allclose(drawn.matrix, other.bases[group].matrix)
            assert not torch.allclose(drawn.matrix.abs(), basis.matrix.abs())


@pytest.fixture
def path(tmp_path, bases):
    bases.save(tmp_path / "bases.safetensors")
    return tmp_path / "bases.safetensors"


def test_round_trip(path, bases):
    got = Bases.load(path)
    assert (got.groups, got.about) == (bases.groups, bases.about)
    assert got.bases.keys() == bases.bases.keys()
    assert {basis.complement for basis in got.bases.values()} == {True, False}
    for group, basis in bases.bases.items():
        read = got.bases[group]
        assert torch.equal(read.matrix, basis.matrix)
        assert (read.complement, read.energy) == (basis.complement, basis.energy)


def test_equal_bases_give_equal_bytes(path, tmp_path, model):
    again = tmp_path / "again.safetensors"
    collect_bases(model, ROWS, energy=0.95).save(again)
    assert again.read_bytes() == path.read_bytes()
    Bases.load(path).save(again)
    assert again.read_bytes() == path.read_bytes()


def test_random_bases_can_be_saved(tmp_path, bases):
    bases.randomised(1).save(tmp_path / "random.safetensors")
    read = Bases.load(tmp_path / "random.safetensors")
    assert all(math.isnan(basis.energy) for basis in read.bases.values())


@pytest.mark.parametrize("kept", [0, 9, 200, -1])
def test_a_damaged_file_is_one_line(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError) as caught:
        Bases.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_flipped_bit_is_found(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Bases.load(path)


@pytest.mark.parametrize(
    "metadata",
    [None, {"bases": "{}"}, {"bases": "{"}, {"bases": '{"groups": {"a": "gone"}}'}, {"bases": "3"}],
)
def test_a_file_of_another_kind_is_one_line(tmp_path, metadata):
    from safetensors.torch import save_file

    path = tmp_path / "bases.safetensors"
    save_file({"x": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(UserError, match="not a readable bases file"):
        Bases.load(path)


def test_a_module_without_a_basis_is_one_line(tmp_path, bases):
    Bases({"a": "gone"}, bases.bases, {}).save(tmp_path / "bases.safetensors")
    with pytest.raises(UserError, match="not a readable bases file"):
        Bases.load(tmp_path / "bases.safetensors")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not a readable bases file"):
        Bases.load(tmp_path / "none.safetensors")


# The command


def command(world, out, **options) -> None:
    from shielded_recrl.shield.settings import BasisSettings

    chosen = {name: options.pop(name) for name in ("weight", "rank") if name in options}
    settings = BasisSettings(energy=0.99, **chosen)
    call(
        module.main,
        data=world.data,
        base=world.base,
        templates=world.templates,
        out=out,
        prompt=world.prompt,
        roles=world.roles,
        settings=settings,
        seed=world.roles_seed,
        **options,
    )


def test_the_command(world, tmp_path, capsys):
    out = tmp_path / "bases.safetensors"
    command(world, out, revision="abc", rank=3)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{out}: 5 protected prefixes, rank k/d of each input: 3/32, 3/32, ")
    serving = world.serving()
    prefixes = [serving.prefix(user) for user in serving.roles.protected]
    expected = collect_bases(
        load_base(world.base, "fp32", CPU),
        prefixes,
        energy=0.99,
        rank=3,
        seed=3,
        about={"revision": "abc"},
    )
    got = Bases.load(out)
    assert (got.groups, got.about) == (expected.groups, expected.about)
    for group, basis in got.bases.items():
        assert torch.equal(basis.matrix, expected.bases[group].matrix)


def test_the_command_with_score_weights(world, tmp_path):
    from safetensors.torch import load_file, save_file

    readout, out = tmp_path / "readout.safetensors", tmp_path / "bases.safetensors"
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    # gamma 0: the bases still are those of what the ranking would read.
    save_file({"weight": weight, "gamma": torch.tensor(0.0)}, readout)
    command(world, out, weight="score", readout=readout, ranker=world.ranker)
    serving = world.serving()
    head = RankingHead(load_file(world.ranker)["items"][1:], weight, 1.0)
    expected = collect_bases(
        load_base(world.base, "fp32", CPU),
        [serving.prefix(user) for user in serving.roles.protected],
        energy=0.99,
        weight="score",
        head=head,
        seed=3,
    )
    got = Bases.load(out)
    assert got.about == expected.about
    for group, basis in got.bases.items():
        assert torch.equal(basis.matrix, expected.bases[group].matrix)
    for left_out in ("readout", "ranker"):
        inputs = {"readout": readout, "ranker": world.ranker} | {left_out: None}
        with pytest.raises(UserError, match="weight score needs --readout and --ranker"):
            command(world, out, weight="score", **inputs)
