"""The constraint: exact algebra on either side, any optimizer, and clear refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import adapter_parameters
from shielded_recrl.shield.adapter import lora_a, lora_b
from shielded_recrl.shield.basis import Basis, random_basis, smaller
from shielded_recrl.shield.constraint import Constraint
from tiny_world import prompts, tiny_llama, with_adapter

WIDTH = 32
TEXTS = torch.tensor(prompts(16, 12, 12, seed=3))


def subspace(d: int, k: int, seed: int = 0) -> Basis:
    return random_basis(d, k, torch.Generator().manual_seed(seed))


def orthonormal(basis: Basis) -> torch.Tensor:
    """Q [d, k] of a basis however it is stored, float64."""
    projector = basis.inside(torch.eye(basis.width)).double()
    return torch.linalg.svd(projector)[0][:, : basis.rank]


def fresh(moved: float = 0.0):
    return with_adapter(tiny_llama(width=WIDTH), moved=moved)


def all_bases(model, rank_share: float = 0.4, side: str = "input") -> dict[str, Basis]:
    weights, axis = (lora_a(model), 1) if side == "input" else (lora_b(model), 0)
    widths = {name: weight.shape[axis] for name, weight in weights.items()}
    return {name: subspace(d, int(rank_share * d), seed=d) for name, d in widths.items()}


def train(model, optimizer, steps: int, accumulate: int = 1) -> list[float]:
    """Fit random texts; a task that pulls on every adapted weight."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        total = 0.0
        for rows in TEXTS.chunk(accumulate):
            loss = model(rows, labels=rows).loss / accumulate
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses


def hook(constraint: Constraint, optimizer) -> None:
    optimizer.register_step_pre_hook(lambda *_: constraint.project_gradients())
    optimizer.register_step_post_hook(lambda *_: constraint.project())


def held(matrix: torch.Tensor, basis: Basis, side: str):
    """One weight under a constraint, without a model around it."""
    constraint = Constraint({"m": basis}, side)
    weight = torch.nn.Parameter(matrix.clone())
    constraint.held = {"m": (weight, basis)}
    return weight, constraint


@given(
    seed=st.integers(0, 10**6),
    d=st.integers(2, 24),
    k=st.integers(0, 24),
    r=st.integers(1, 6),
    scale=st.floats(1e-3, 1e3),
    side=st.sampled_from(["input", "output"]),
)
@settings(max_examples=60, deadline=None)
def test_projection_is_exact_and_idempotent(seed, d, k, r, scale, side):
    """On either side, and whether the subspace or its complement is stored."""
    shape = (r, d) if side == "input" else (d, r)
    matrix = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    basis = subspace(d, min(k, d), seed)
    weight, constraint = held(matrix, basis, side)
    constraint.project()
    once = weight.detach().clone()
    constraint.project()
    tolerance = 1e-5 * scale
    torch.testing.assert_close(weight.detach(), once, atol=tolerance, rtol=0)
    rows = (lambda m: m) if side == "input" else (lambda m: m.T)
    q = orthonormal(basis)
    expected = rows(matrix).double() - rows(matrix).double() @ q @ q.T
    torch.testing.assert_close(rows(once).double(), expected, atol=tolerance, rtol=0)


def test_projection_and_leakage_by_hand():
    q = Basis(torch.tensor([[0.6], [0.8], [0.0]]))
    for side, shape in (("input", (1, 3)), ("output", (3, 1))):
        weight, constraint = held(torch.tensor([3.0, 4.0, 12.0]).reshape(shape), q, side)
        assert constraint.leakage()["m"] == pytest.approx(5 / 13)
        constraint.project()
        torch.testing.assert_close(weight.detach().flatten(), torch.tensor([0.0, 0.0, 12.0]))
        assert constraint.leakage()["m"] < 1e-7


def test_a_weight_of_zeros_leaks_nothing():
    _, constraint = held(torch.zeros(2, 4), subspace(4, 2), "input")
    assert constraint.leakage() == {"m": 0.0}


def test_bf16_weights_are_projected_in_fp32_and_rounded_once():
    """Each element is within half a unit in the last place, 2^-8, of the exact projection."""
    matrix = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    basis = subspace(64, 20)
    weight, constraint = held(matrix.bfloat16(), basis, "input")
    exact = basis.outside(weight.detach())
    constraint.project()
    assert weight.dtype == torch.bfloat16
    assert ((weight.float() - exact).abs() <= 2**-8 * exact.abs() + 1e-7).all()
    assert 1e-5 < constraint.leakage()["m"] < 2**-8


def test_gradients_are_projected_and_missing_ones_left():
    weight, constraint = held(torch.ones(1, 2), Basis(torch.tensor([[1.0], [0.0]])), "input")
    constraint.project_gradients()
    assert weight.grad is None
    weight.grad = torch.tensor([[3.0, 4.0]])
    constraint.project_gradients()
    assert weight.grad.tolist() == [[0.0, 4.0]]


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.Adam(weights, lr=1e-2),
        lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1, foreach=True),
        lambda weights: torch.optim.Adam(weights, lr=1e-2, fused=True),
        lambda weights: torch.optim.SGD(weights, lr=1e-1, momentum=0.9, nesterov=True),
        lambda weights: torch.optim.Adafactor(weights, lr=1e-2),
    ],
    ids=["adam", "adamw-foreach", "adam-fused", "sgd-momentum", "adafactor"],
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_it_holds_under_any_optimizer_and_leaves_room_to_learn(make, side):
    model = fresh(moved=0.05)
    constraint = Constraint(all_bases(model, side=side), side)
    constraint.attach(model)
    start = {name: weight.detach().clone() for name, (weight, _) in constraint.held.items()}
    optimizer = make(list(adapter_parameters(model).values()))
    hook(constraint, optimizer)
    losses = train(model, optimizer, 8, accumulate=2)
    leakage = constraint.leakage()
    assert leakage.keys() == start.keys()
    assert max(leakage.values()) < 1e-6
    assert losses[-1] < losses[0]
    for name, (weight, _) in constraint.held.items():
        assert not torch.allclose(weight, start[name], atol=1e-5), f"{name} did not move"


def test_projecting_the_gradient_alone_leaks_under_adam_but_not_under_plain_sgd():
    """Adam divides element by element: a step along an orthogonal gradient is not orthogonal."""
    leakage = {}
    for name, optimizer in {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}.items():
        model = fresh(moved=0.05)
        constraint = Constraint(all_bases(model))
        constraint.attach(model)
        optimizer = optimizer(adapter_parameters(model).values(), lr=1e-2)
        optimizer.register_step_pre_hook(lambda *_, held=constraint: held.project_gradients())
        train(model, optimizer, 8)
        leakage[name] = max(constraint.leakage().values())
    assert leakage["adam"] > 0.01
    assert leakage["sgd"] < 1e-5


def test_attach_projects_at_once():
    model = fresh()
    bases = all_bases(model)
    weights = lora_a(model)
    assert max(bases[name].leakage(weight.detach()) for name, weight in weights.items()) > 0.1
    constraint = Constraint(bases)
    constraint.attach(model)
    assert max(constraint.leakage().values()) < 1e-6


def test_attach_refuses_missing_bases_and_other_widths():
    name = "model.layers.1.mlp.up_proj"
    bases = all_bases(fresh())
    for wrong in (
        {key: basis for key, basis in bases.items() if key != name},
        {**bases, name: subspace(WIDTH // 2, 3)},
    ):
        with pytest.raises(UserError, match=rf"no basis of width 32 for {name}") as caught:
            Constraint(wrong).attach(fresh())
        assert "\n" not in str(caught.value)


def test_bases_that_leave_no_room_at_all_are_refused():
    """Each lora_A would be 0 for good; one module with room is enough to train."""
    widths = {name: weight.shape[1] for name, weight in lora_a(fresh()).items()}
    full = {name: smaller(torch.eye(d, dtype=torch.float64), d, 1.0) for name, d in widths.items()}
    with pytest.raises(UserError, match=r"lower shield\.energy or protect fewer users"):
        Constraint(full).attach(fresh())
    model, name = fresh(), "model.layers.1.mlp.up_proj"
    Constraint({**full, name: subspace(widths[name], 3)}).attach(model)
    assert {n for n, weight in lora_a(model).items() if weight.any()} == {name}


def test_output_side_holds_every_module_as_wide_as_the_bases():
    """q, k and v too, which write elsewhere; the MLP's inner width is another, and left alone."""
    model = fresh(moved=0.1)
    names = [name for name, weight in lora_b(model).items() if weight.shape[0] == WIDTH]
    assert len(names) == 2 * 5
    constraint = Constraint(dict.fromkeys(names, subspace(WIDTH, 8)), "output")
    constraint.attach(model)
    assert set(constraint.held) == set(names)
    partial = dict.fromkeys(names[1:], subspace(WIDTH, 8))
    with pytest.raises(UserError, match=f"no basis of width 32 for {names[0]}"):
        Constraint(partial, "output").attach(fresh())
    with pytest.raises(UserError, match=r"no adapted module has an output of width \[7\]"):
        Constraint({"x": subspace(7, 2)}, "output").attach(fresh())


def test_shared_bases_are_one_object_after_attach():
    model = fresh()
    columns = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0]
    shared = smaller(columns, 6, 1.0)
    bases = {
        name: shared if weight.shape[1] == WIDTH else subspace(weight.shape[1], 6)
        for name, weight in lora_a(model).items()
    }
    constraint = Constraint(bases)
    constraint.attach(model)
    found = {id(basis) for _, basis in constraint.held.values() if basis.width == WIDTH}
    assert len(found) == 1
