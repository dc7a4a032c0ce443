"""The shield around a whole training run: what stays where it was, and what is not promised."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import adapter_parameters, last_block_linears, prefix_states
from shielded_recrl.shield.adapter import lora_a
from shielded_recrl.shield.basis import Basis
from shielded_recrl.shield.constraint import Constraint
from shielded_recrl.shield.ranking_shield import RankingShield, ranker_bases, row_space
from shielded_recrl.shield.serving import RankingHead
from tiny_world import prompts, tiny_llama, with_adapter

WIDTH, LAYERS = 64, 2
PROTECTED = prompts(3, 5, 8, seed=1)
HELDOUT = prompts(40, 5, 12, seed=2)
TEXTS = torch.tensor(prompts(8, 12, 12, seed=3))
CPU = torch.device("cpu")


def make_head() -> RankingHead:
    generator = torch.Generator().manual_seed(0)
    items, weight = (torch.randn(*shape, generator=generator) for shape in ((30, 8), (8, WIDTH)))
    return RankingHead(items, weight, 1 / (8 * WIDTH) ** 0.5)


HEAD = make_head()


def base():
    return tiny_llama(width=WIDTH, layers=LAYERS)


def fresh(last_block: bool = False):
    """A base with an adapter whose update is still zero."""
    if not last_block:
        return with_adapter(base(), moved=0.0)
    torch.manual_seed(0)
    names = last_block_linears(base())
    config = LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM")
    return get_peft_model(base(), config).eval()


def train(model, optimizer, steps: int) -> list[float]:
    """Fit random texts; a task that pulls on every adapted weight."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(TEXTS, labels=TEXTS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def scores(model, rows) -> torch.Tensor:
    return HEAD(prefix_states(model, rows))


def drift(model, rows) -> float:
    """Largest |score change|; the scores' standard deviation is about 1."""
    return (scores(model, rows) - scores(base(), rows)).abs().max().item()


def adam(model) -> torch.optim.Optimizer:
    return torch.optim.Adam(adapter_parameters(model).values(), lr=5e-3)


class Run(NamedTuple):
    model: torch.nn.Module
    shield: RankingShield | Constraint | None
    losses: list[float]


@cache
def make_shield(kind: str):
    """The shields that are compared; `gradient` is a bare constraint."""
    if kind == "none":
        return None
    complete = {"energy": 1.0, "scope": "last_block" if kind == "last_block" else "all"}
    if kind in ("ranker", "random"):
        return RankingShield.fit(base(), PROTECTED, HEAD, kind=kind, **complete)
    shield = RankingShield.fit(base(), PROTECTED, HEAD, **complete)
    return Constraint(shield.bases.modules) if kind == "gradient" else shield


@pytest.fixture(scope="module")
def bases():
    return make_shield("nullspace").bases


@cache
def trained(kind: str) -> Run:
    """200 Adam steps: the model, its shield, and the loss on the way."""
    model, shield = fresh(last_block=kind == "last_block"), make_shield(kind)
    optimizer = adam(model)
    if shield is not None:
        shield.attach(model)
    if kind == "gradient":
        optimizer.register_step_pre_hook(lambda *_: shield.project_gradients())
    elif shield is not None:
        shield.hook(optimizer)
    return Run(model, shield, train(model, optimizer, 200))


def held_still(run) -> bool:
    return drift(run.model, PROTECTED) < 1e-5


def test_scores_have_unit_scale():
    assert scores(base(), HELDOUT).std().item() == pytest.approx(1, abs=0.4)


def test_without_a_shield_protected_scores_move_by_more_than_one():
    assert drift(trained("none").model, PROTECTED) > 1.0


def test_a_complete_span_holds_protected_scores_still():
    assert held_still(trained("nullspace"))
    assert trained("nullspace").shield.leakage() < 1e-6


def test_projecting_the_gradient_alone_fails_that_very_test():
    """Kept as a demonstration: Adam rescales element by element, so the constraint is lost."""
    assert not held_still(trained("gradient"))
    assert drift(trained("gradient").model, PROTECTED) > 0.1
    assert max(trained("gradient").shield.leakage().values()) > 0.01


def test_random_subspaces_of_equal_rank_drift(bases):
    shield = trained("random").shield
    assert {n: b.rank for n, b in shield.bases.bases.items()} == {
        n: b.rank for n, b in bases.bases.items()
    }
    assert shield.leakage() < 1e-6
    assert drift(trained("random").model, PROTECTED) > 0.1


def test_the_last_block_alone_holds_protected_scores_still():
    """Of q, o and the MLP only the read-out position's inputs are in the bases."""
    run = trained("last_block")
    ranks = {name: basis.rank for name, basis in run.shield.bases.modules.items()}
    assert set(ranks) == set(lora_a(run.model))
    last = "model.layers.1."
    assert ranks[f"{last}mlp.up_proj"] == ranks[f"{last}self_attn.q_proj"] == len(PROTECTED)
    assert ranks[f"{last}self_attn.k_proj"] > len(PROTECTED)
    assert held_still(run)
    assert drift(run.model, HELDOUT) > 0.1


def test_the_ranker_shield_promises_nothing():
    assert trained("ranker").shield.leakage() < 1e-6
    assert drift(trained("ranker").model, PROTECTED) > 0.1


def test_users_outside_the_span_are_not_promised_anything():
    assert drift(trained("nullspace").model, HELDOUT) > 0.1


@pytest.mark.parametrize("name", ["none", "nullspace", "random", "ranker", "last_block"])
def test_every_shield_leaves_room_to_learn(name):
    assert trained(name).losses[-1] < 0.7 * trained(name).losses[0]


def test_the_adapter_is_a_plain_peft_folder_that_merges(tmp_path):
    trained("nullspace").model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    loaded = PeftModel.from_pretrained(base(), tmp_path).eval()
    assert torch.equal(scores(loaded, HELDOUT), scores(trained("nullspace").model, HELDOUT))
    assert drift(loaded, PROTECTED) < 1e-5
    merged = loaded.merge_and_unload()
    assert drift(merged, PROTECTED) < 1e-4
    torch.testing.assert_close(
        scores(merged, HELDOUT),
        scores(trained("nullspace").model, HELDOUT),
        atol=1e-3,
        rtol=0,
    )


def test_the_certificate_says_exact_of_the_complete_span_alone():
    for name, verdict in (("nullspace", "exact"), ("random", "approximate")):
        run = trained(name)
        certificate = run.shield.certify(run.model, PROTECTED, HELDOUT, alpha=0.1)
        assert certificate["kind"] == name
        assert certificate["verdict"]["protected"] == verdict
        assert certificate["protected"]["max_score_change"] == pytest.approx(
            drift(run.model, PROTECTED), abs=1e-5
        )


@pytest.mark.parametrize("penalty", [0.0, 5.0])
def test_a_resumed_run_keeps_the_constraint_and_ends_alike(tmp_path, penalty):
    """Everything is made anew in the middle but for what was saved."""

    def shielded(model, step: int):
        shield = RankingShield.fit(base(), PROTECTED, HEAD, energy=0.9, penalty=penalty)
        shield.batch_size = 2
        shield.attach(model)
        optimizer = adam(model)
        shield.hook(optimizer, step=step)
        return shield, optimizer

    straight = fresh()
    shield, optimizer = shielded(straight, 0)
    train(straight, optimizer, 10)
    assert shield.step == 10

    first = fresh()
    _, optimizer = shielded(first, 0)
    train(first, optimizer, 5)
    first.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")

    second = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True).eval()
    shield, optimizer = shielded(second, 5)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    train(second, optimizer, 5)
    assert shield.step == 10
    assert shield.leakage() < 1e-6
    torch.testing.assert_close(
        scores(second, HELDOUT), scores(straight, HELDOUT), atol=1e-3, rtol=0
    )


def test_a_resume_without_attach_would_lose_it(bases):
    """What attach repeats: weights that came past the optimizer are projected there."""
    model = fresh()
    shield = RankingShield(bases, PROTECTED, HEAD)
    shield.attach(model)
    with torch.no_grad():
        for weight in lora_a(model).values():
            weight.add_(0.01)
    assert shield.leakage() > 0.01
    shield.attach(model)
    assert shield.leakage() < 1e-6


def test_the_penalty_lowers_the_drift_of_a_partial_span():
    drifts = {}
    for penalty in (0.0, 10.0):
        model = fresh()
        shield = RankingShield.fit(base(), PROTECTED, HEAD, energy=0.7, penalty=penalty)
        shield.attach(model)
        assert (shield.penalty is None) == (penalty == 0)
        optimizer = adam(model)
        shield.hook(optimizer)
        train(model, optimizer, 40)
        drifts[penalty] = drift(model, PROTECTED)
    assert drifts[0.0] > 1e-2
    assert drifts[10.0] < 0.5 * drifts[0.0]


def test_the_penalty_alone_needs_no_bases():
    drifts = {}
    for penalty in (0.0, 10.0):
        model = fresh()
        optimizer = adam(model)
        shield = RankingShield(None, PROTECTED, HEAD, penalty=penalty, kind="none")
        shield.attach(model)
        shield.hook(optimizer)
        train(model, optimizer, 40)
        assert shield.leakage() == 0.0
        drifts[penalty] = drift(model, PROTECTED)
    assert drifts[10.0] < 0.5 * drifts[0.0]


def test_a_penalty_needs_a_head():
    with pytest.raises(UserError, match="penalty: needs the ranking's head"):
        RankingShield(None, PROTECTED, None, penalty=1.0)


def test_without_a_penalty_nothing_is_added_to_the_gradient(bases):
    """The step equals one on gradients projected by hand."""
    first, second = fresh(), fresh()
    shield = RankingShield(bases, PROTECTED, HEAD)
    shield.attach(first)
    optimizer = torch.optim.SGD(adapter_parameters(first).values(), lr=0.1)
    shield.hook(optimizer)
    train(first, optimizer, 1)
    by_hand = Constraint(bases.modules)
    by_hand.attach(second)
    second(TEXTS, labels=TEXTS).loss.backward()
    by_hand.project_gradients()
    torch.optim.SGD(adapter_parameters(second).values(), lr=0.1).step()
    by_hand.project()
    for name, weight in adapter_parameters(first).items():
        assert torch.equal(weight, adapter_parameters(second)[name])


def test_hooking_again_replaces_the_hooks_and_unhook_ends_them(bases):
    model = fresh()
    shield = RankingShield(bases, PROTECTED, HEAD)
    shield.attach(model)
    optimizer = adam(model)
    shield.hook(optimizer)
    shield.hook(optimizer, step=7)
    train(model, optimizer, 2)
    assert shield.step == 9
    shield.unhook(optimizer)
    train(model, optimizer, 3)
    assert shield.step == 9
    assert shield.leakage() > 0.01


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_nothing_is_held_before_attach(bases, penalty):
    shield = RankingShield(bases if penalty == 0 else None, PROTECTED, HEAD, penalty=penalty)
    for act in (lambda: shield.hook(adam(fresh())), shield.leakage):
        with pytest.raises(UserError, match=r"call attach\(peft_model\) first"):
            act()


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_an_optimizer_of_other_weights_is_refused(bases, penalty):
    model = fresh()
    shield = RankingShield(bases if penalty == 0 else None, PROTECTED, HEAD, penalty=penalty)
    shield.attach(model)
    some = [weight for name, weight in adapter_parameters(model).items() if "lora_B" in name]
    for optimizer in (adam(fresh()), torch.optim.SGD(some, lr=0.1)):
        with pytest.raises(UserError, match="does not train all weights that the shield acts on"):
            shield.hook(optimizer)


def test_weights_that_are_frozen_need_no_optimizer(bases):
    """Projected when attached, they stay so."""
    model = fresh()
    for weight in lora_a(model).values():
        weight.requires_grad_(False)
    shield = RankingShield(bases, PROTECTED, HEAD)
    shield.attach(model)
    some = [weight for name, weight in adapter_parameters(model).items() if "lora_B" in name]
    optimizer = torch.optim.Adam(some, lr=5e-3)
    shield.hook(optimizer)
    train(model, optimizer, 2)
    assert shield.step == 2
    assert shield.leakage() < 1e-6


@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_is_refused(bases, by_name):
    """Its gradients come after the hook, so neither penalty nor projection would reach them."""
    model = fresh()
    shield = RankingShield(bases, PROTECTED, HEAD)
    shield.attach(model)
    optimizer = adam(model)
    shield.hook(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = model(TEXTS, labels=TEXTS).loss
        loss.backward()
        return loss

    before = [weight.detach().clone() for weight in adapter_parameters(model).values()]
    with pytest.raises(UserError, match=r"optimizer\.step\(closure\)"):
        optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    after = adapter_parameters(model).values()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    closure()
    optimizer.step(None)
    assert shield.step == 1


def test_a_score_weighted_basis_and_random_bases_come_from_fit():
    weighted = RankingShield.fit(base(), PROTECTED, HEAD, weight="score", energy=0.9)
    assert weighted.bases.about["weight"] == "score"
    control = RankingShield.fit(base(), PROTECTED, HEAD, kind="random", rank=3, seed=3)
    assert {basis.rank for basis in control.bases.bases.values()} == {3}
    same = RankingShield.fit(base(), PROTECTED, HEAD, kind="random", rank=3, seed=3)
    for group, basis in control.bases.bases.items():
        assert torch.equal(basis.matrix, same.bases.bases[group].matrix)


def test_fit_on_a_peft_model_is_fit_on_its_base(bases):
    got = RankingShield.fit(with_adapter(base(), moved=0.3), PROTECTED, HEAD, energy=1.0).bases
    assert got.about["base_sha256"] == bases.about["base_sha256"]
    for name, basis in bases.modules.items():
        assert got.modules[name].rank == basis.rank


def test_bases_of_other_weights_or_another_precision_are_refused(bases):
    other = with_adapter(tiny_llama(width=WIDTH, layers=LAYERS, seed=1), moved=0.0)
    narrow = with_adapter(base().bfloat16(), moved=0.0)
    for model in (other, narrow):
        with pytest.raises(UserError, match="other base weights or in another precision"):
            RankingShield(bases, PROTECTED, HEAD).attach(model)


def test_an_adapter_outside_the_scope_is_refused():
    shield = RankingShield.fit(base(), PROTECTED, HEAD, energy=1.0, scope="last_block")
    with pytest.raises(UserError, match=r"last_block, but the adapter changes model\.layers\.0\."):
        shield.attach(fresh())
    shield.attach(fresh(last_block=True))


def test_more_than_plain_lora_is_refused(bases):
    config = LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="DoRA"):
        RankingShield(bases, PROTECTED, HEAD).attach(get_peft_model(base(), config))


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="'dora' is no constraint; use nullspace, random or ranker"):
        RankingShield.fit(base(), PROTECTED, HEAD, kind="dora")


def test_a_head_that_reads_nothing_has_no_row_space():
    with pytest.raises(UserError, match="no direction to hold; give the head with gamma above 0"):
        row_space(replace(HEAD, gamma=0.0), WIDTH, CPU, energy=0.9)


@pytest.mark.parametrize("linear", [True, False])
def test_the_row_space_by_hand(linear):
    """J has singular values 3 and 1 along the first two axes."""
    matrix = torch.tensor([[3.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])

    def head(hidden):
        scores = hidden @ matrix.T
        return scores if linear else torch.sin(scores) + 5 + hidden[:, 2:3] ** 2

    for energy, rank in ((0.9, 1), (0.91, 2), (1.0, 2)):
        basis = row_space(head, 4, CPU, energy=energy)
        assert basis.rank == rank
        torch.testing.assert_close(
            basis.inside(torch.eye(4)), torch.diag(torch.tensor([1.0, float(rank > 1), 0, 0]))
        )
    assert row_space(head, 4, CPU, energy=0.9).energy == pytest.approx(0.9)
    assert row_space(head, 4, CPU, energy=0.5, rank=3).rank == 3


def test_the_ranker_shield_holds_every_module_of_the_hidden_width():
    """q, k and v among them: their heads side by side are as wide, though nothing of theirs is
    what the head reads."""
    bases = ranker_bases(with_adapter(base()), HEAD, energy=1.0)
    inner = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
    assert set(bases.groups) == {
        name for name in lora_a(fresh()) if name.rsplit(".", 1)[-1] in inner
    }
    (basis,) = bases.bases.values()
    assert isinstance(basis, Basis)
    assert basis.rank == 8
    assert basis.leakage(HEAD.weight) == pytest.approx(1, abs=1e-5)
    assert set(ranker_bases(base(), HEAD, scope="last_block").groups) == {
        name for name in bases.groups if name.startswith("model.layers.1.")
    }
