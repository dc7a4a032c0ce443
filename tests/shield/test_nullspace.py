"""The null-space shield: exact algebra, any optimizer, and protected scores that do not move."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import adapter_parameters, prefix_states
from shielded_recrl.shield.bases import input_moments, leading_basis
from shielded_recrl.shield.nullspace import NullSpace, leakage, lora_a, project_out
from tiny_world import prompts, tiny_llama, with_adapter

WIDTH = 64
PROTECTED = prompts(3, 5, 8, seed=1)
HELDOUT = prompts(40, 5, 12, seed=2)
TEXTS = torch.tensor(prompts(16, 12, 12, seed=3))


def orthonormal(d: int, k: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0].float()


def collect(model, rows, energy: float = 1.0) -> dict[str, torch.Tensor]:
    moments, groups = input_moments(model, rows)
    bases = {group: leading_basis(moment, energy) for group, moment in moments.items()}
    return {module: bases[group] for module, group in groups.items()}


def fresh():
    """A base of width 64 with an adapter whose update is still zero."""
    model = with_adapter(tiny_llama(width=WIDTH), moved=0.0)
    for weight in adapter_parameters(model).values():
        weight.requires_grad_()
    return model


@pytest.fixture(scope="module")
def bases():
    return collect(tiny_llama(width=WIDTH), PROTECTED)


def train(model, optimizer, steps: int) -> list[float]:
    """Fit random texts; a task that pulls on every adapted weight."""
    losses = []
    for _ in range(steps):
        loss = model(TEXTS, labels=TEXTS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@given(
    seed=st.integers(0, 10**6),
    d=st.integers(2, 24),
    k=st.integers(0, 24),
    r=st.integers(1, 6),
    scale=st.floats(1e-3, 1e3),
)
@settings(max_examples=60, deadline=None)
def test_projection_is_exact_and_idempotent(seed, d, k, r, scale):
    matrix = scale * torch.randn(r, d, generator=torch.Generator().manual_seed(seed))
    basis = orthonormal(d, min(k, d), seed)
    once = project_out(matrix, basis)
    tolerance = 1e-5 * scale
    assert (once @ basis).abs().max().item() <= tolerance if basis.shape[1] else True
    torch.testing.assert_close(project_out(once, basis), once, atol=tolerance, rtol=0)
    # What was taken away lies in the span: nothing outside of it is lost.
    removed = matrix - once
    torch.testing.assert_close(removed @ basis @ basis.T, removed, atol=tolerance, rtol=0)
    assert once.norm() <= matrix.norm() * (1 + 1e-6)


def test_projection_by_hand():
    got = project_out(torch.tensor([[3.0, 4.0, 5.0]]), torch.tensor([[0.6], [0.8], [0.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.0, 5.0]]))


def test_projection_keeps_the_type_of_the_matrix():
    assert project_out(torch.ones(2, 4).bfloat16(), orthonormal(4, 2)).dtype == torch.bfloat16


def test_leakage_by_hand():
    basis = torch.tensor([[1.0], [0.0]])
    assert leakage(torch.tensor([[3.0, 4.0]]), basis) == pytest.approx(0.6)
    assert leakage(torch.tensor([[0.0, 4.0]]), basis) == 0.0
    assert leakage(torch.zeros(1, 2), basis) == 0.0


def test_lora_a_has_the_names_of_the_base():
    model = fresh()
    base_names = {name for name, _ in tiny_llama(width=WIDTH).named_modules()}
    weights = lora_a(model)
    assert len(weights) == 2 * 7
    assert weights.keys() <= base_names
    assert all(weight.shape[0] == 4 for weight in weights.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: torch.optim.Adam(weights, lr=1e-2),
        lambda weights: torch.optim.SGD(weights, lr=1e-1, momentum=0.9),
        lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1),
    ],
    ids=["adam", "sgd", "adamw"],
)
def test_the_hook_keeps_the_null_space_under_any_optimizer(bases, make):
    model, shield = fresh(), NullSpace(bases)
    before = {name: weight.detach().clone() for name, weight in lora_a(model).items()}
    shield.attach(model)
    optimizer = make(adapter_parameters(model).values())
    shield.hook(optimizer)
    losses = train(model, optimizer, 8)
    assert shield.leakage() < 1e-6
    assert losses[-1] < losses[0]
    for name, weight in lora_a(model).items():
        # Trained, not frozen: it moved from where the projection had put it.
        start = project_out(before[name], bases[name])
        assert not torch.allclose(weight, start, atol=1e-5)


def test_projecting_the_gradient_alone_does_not_keep_it_under_adam(bases):
    """Adam divides element by element: a step along an orthogonal gradient is not orthogonal."""
    model, shield = fresh(), NullSpace(bases)
    shield.attach(model)
    optimizer = torch.optim.Adam(adapter_parameters(model).values(), lr=1e-2)
    optimizer.register_step_pre_hook(lambda *_: shield.project_gradients())
    train(model, optimizer, 8)
    assert shield.leakage() > 0.01


def test_attach_projects_at_once(bases):
    model, shield = fresh(), NullSpace(bases)
    assert max(leakage(w.detach(), bases[name]) for name, w in lora_a(model).items()) > 0.1
    shield.attach(model)
    assert shield.leakage() < 1e-6


def test_attach_refuses_missing_bases_and_other_widths(bases):
    name = "model.layers.1.mlp.up_proj"
    for wrong in (
        {key: basis for key, basis in bases.items() if key != name},
        {**bases, name: orthonormal(WIDTH // 2, 3)},
    ):
        with pytest.raises(UserError, match=rf"no basis of width 64 for {name}") as caught:
            NullSpace(wrong).attach(fresh())
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def trained(bases):
    """Largest |score change| of 100 Adam steps, by users and shield, and the loss path."""
    head = torch.randn(WIDTH, 30, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
    result = {}
    for kind in ("none", "nullspace"):
        model = fresh()
        before = {"protected": PROTECTED, "heldout": HELDOUT}
        before = {who: prefix_states(model, rows) @ head for who, rows in before.items()}
        optimizer = torch.optim.Adam(adapter_parameters(model).values(), lr=5e-3)
        if kind == "nullspace":
            shield = NullSpace(bases)
            shield.attach(model)
            shield.hook(optimizer)
        losses = train(model, optimizer, 100)
        after = {"protected": PROTECTED, "heldout": HELDOUT}
        result[kind] = {
            who: (prefix_states(model, rows) @ head - before[who]).abs().max().item()
            for who, rows in after.items()
        } | {"losses": losses}
    return result


def test_a_complete_span_holds_protected_scores_still(trained):
    assert trained["none"]["protected"] > 1.0
    assert trained["nullspace"]["protected"] < 1e-5


def test_users_outside_the_span_are_not_promised_anything(trained):
    assert trained["nullspace"]["heldout"] > 0.1


def test_few_protected_tokens_leave_room_to_learn(trained, bases):
    assert all(basis.shape[1] < basis.shape[0] for basis in bases.values())
    losses = trained["nullspace"]["losses"]
    assert losses[-1] < 0.6 * losses[0]


def test_a_partial_span_lets_protected_scores_move(trained):
    """With an energy cut-off the residual is measured, not zero."""
    model = fresh()
    before = prefix_states(model, PROTECTED)
    shield = NullSpace(collect(tiny_llama(width=WIDTH), PROTECTED, energy=0.7))
    shield.attach(model)
    optimizer = torch.optim.Adam(adapter_parameters(model).values(), lr=5e-3)
    shield.hook(optimizer)
    train(model, optimizer, 20)
    assert (prefix_states(model, PROTECTED) - before).abs().max() > 1e-3
