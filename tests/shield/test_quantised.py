"""The shield over bases in every precision they are served in."""

from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model

from shielded_recrl.explainer.base import load_base
from shielded_recrl.explainer.lm import (
    adapter_parameters,
    prefix_states,
    switch_off_dropout,
)
from shielded_recrl.shield.adapter import guard_gradients
from shielded_recrl.shield.ranking_shield import RankingShield
from tiny_world import prompts, tiny_llama

CPU = torch.device("cpu")
WIDTH = 64
PROTECTED = prompts(3, 5, 8, seed=1)
TEXTS = torch.tensor(prompts(8, 12, 12, seed=3))
READ = torch.randn(WIDTH, 20, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5
PRECISIONS = ("fp32", "bf16", "int8", "nf4")


def head(hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ READ


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads the same base in a precision."""
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(width=WIDTH).save_pretrained(folder)

    def load(precision: str):
        if precision in ("int8", "nf4"):
            pytest.importorskip("bitsandbytes")
        return load_base(folder, precision, CPU)

    return load


def adapt(base, narrow: bool = False):
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config, autocast_adapter_dtype=not narrow)
    if narrow:
        for weight in adapter_parameters(model).values():
            weight.data = weight.data.bfloat16()
    switch_off_dropout(model)
    return model


def train(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(TEXTS, labels=TEXTS).loss.backward()
        optimizer.step()


def run(model, shield: RankingShield | None, steps: int = 20) -> float:
    """Largest |change of a protected score|, of standard deviation about 1, over Adam steps."""
    with model.disable_adapter():
        before = head(prefix_states(model, PROTECTED))
    optimizer = torch.optim.Adam(adapter_parameters(model).values(), lr=5e-3)
    if shield is not None:
        shield.attach(model)
        shield.hook(optimizer)
    train(model, optimizer, steps)
    return (head(prefix_states(model, PROTECTED)) - before).abs().max().item()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_protected_scores_stay_on_a_base_in_every_precision(load, precision):
    shield = RankingShield.fit(load(precision), PROTECTED, head, energy=1.0)
    drift = run(adapt(load(precision)), shield)
    assert shield.bases.about["precision"] == precision
    assert shield.leakage() < 1e-6
    unshielded = run(adapt(load(precision)), None)
    print(f"{precision}: {drift:.1e} shielded, {unshielded:.2f} without")
    assert unshielded > 0.3
    assert drift < 1e-5 if precision == "fp32" else drift < 0.05 * unshielded


def test_adapters_in_bf16_keep_the_constraint_to_their_rounding(load):
    """Each weight is rounded to 8 bits after the projection: 2^-8 of leakage at most."""
    shield = RankingShield.fit(load("bf16"), PROTECTED, head, energy=1.0)
    model = adapt(load("bf16"), narrow=True)
    drift = run(model, shield)
    assert {weight.dtype for weight in adapter_parameters(model).values()} == {torch.bfloat16}
    assert shield.leakage() < 2**-8
    unshielded = run(adapt(load("bf16"), narrow=True), None)
    print(f"bf16 adapter: {drift:.1e} shielded, {unshielded:.2f} without")
    assert drift < 0.1 * unshielded


def test_a_basis_from_another_precision_is_worse(load):
    """Why attach compares the base weights: on nf4 the fp32 basis misses what is served."""
    served = RankingShield.fit(load("nf4"), PROTECTED, head, energy=1.0)
    foreign = RankingShield.fit(load("fp32"), PROTECTED, head, energy=1.0)
    foreign.bases.about.pop("base_sha256")
    drifts = {name: run(adapt(load("nf4")), s) for name, s in (("own", served), ("fp32", foreign))}
    print(drifts)
    assert drifts["fp32"] > 3 * drifts["own"]


def gradient(model) -> torch.Tensor:
    model.zero_grad()
    model(TEXTS, labels=TEXTS).loss.backward()
    return torch.cat([w.grad.flatten() for w in adapter_parameters(model).values()])


def rollout(model) -> None:
    """Forward passes without gradient, as sampling does them."""
    with torch.no_grad():
        for length in range(4, 8):
            model(TEXTS[:, :length])


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("guard", [switch_off_dropout, guard_gradients])
def test_gradients_after_a_rollout_equal_those_before(load, precision, guard):
    """Also where the model was put into evaluation mode in between, if the shield is attached."""
    model = adapt(load(precision))
    with torch.no_grad():
        for name, weight in adapter_parameters(model).items():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    guard(model)
    before = gradient(model)
    if guard is guard_gradients:
        model.eval()
    rollout(model)
    after = gradient(model)
    assert before.norm() > 0
    assert torch.equal(before, after)


def test_attach_guards_the_gradients(load):
    """Its own passes for the penalty included."""
    shield = RankingShield.fit(load("nf4"), PROTECTED, head, energy=1.0, penalty=1.0)
    model = adapt(load("nf4"))
    shield.attach(model)
    shield.attach(model)
    before = gradient(model)
    model.eval()
    rollout(model)
    assert torch.equal(before, gradient(model))
    layers = [m for m in model.modules() if type(m).__module__.startswith("bitsandbytes")]
    assert [len(layer._forward_pre_hooks) for layer in layers] == [1] * len(layers)


@cache
def repacks() -> bool:
    """Whether this CPU is one that bitsandbytes repacks 4-bit weights on."""
    try:
        from bitsandbytes.functional import has_avx512bf16
    except ImportError:
        return False
    return bool(has_avx512bf16())


@pytest.mark.skipif(not repacks(), reason="bitsandbytes repacks weights with AVX512-BF16 only")
def test_without_the_guard_they_do_not(load):
    """Kept as a demonstration: in evaluation mode a rollout spoils the gradients that follow."""
    model = adapt(load("nf4"))
    before = gradient(model)
    model.eval()
    rollout(model)
    cosine = torch.cosine_similarity(before, gradient(model), dim=0).item()
    assert cosine < 0.9
