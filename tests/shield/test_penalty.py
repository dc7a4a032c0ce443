"""The score-matching penalty: its value by hand, its gradient, and its order of prompts."""

import numpy as np
import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import (
    adapter_parameters,
    dropout_off,
    last_block_linears,
    prefix_states,
    save_memory,
)
from shielded_recrl.shield.penalty import ScorePenalty
from tiny_ppo import held
from tiny_world import prompts, tiny_llama, with_adapter

PROMPTS = prompts(10, 4, 9, seed=1)
WEIGHTS = torch.randn(32, 12, generator=torch.Generator().manual_seed(0)) / 32**0.5


def head(hidden: torch.Tensor) -> torch.Tensor:
    """Not linear, as a head need not be."""
    return torch.tanh(hidden @ WEIGHTS)


def penalty(model, weight: float = 2.0, batch_size: int = 32, seed: int = 0) -> ScorePenalty:
    return ScorePenalty(model, PROMPTS, head, weight, seed, batch_size)


def test_its_value_is_the_definition():
    model = with_adapter(tiny_llama())
    after = head(prefix_states(model, PROMPTS)).double().numpy()
    before = head(prefix_states(tiny_llama(), PROMPTS)).double().numpy()
    expected = 2.0 * np.mean((after - before) ** 2) / np.mean(before.var(axis=1))
    assert expected > 0.01
    assert penalty(model).loss(0).item() == pytest.approx(expected, rel=1e-4)
    assert penalty(model, weight=6.0).loss(0).item() == pytest.approx(3 * expected, rel=1e-4)


def test_passes_that_begin_at_the_first_adapted_block_change_nothing():
    """Prompts of mixed lengths, in minibatches padded otherwise than the pass that was kept."""
    model = with_adapter(tiny_llama(), targets=last_block_linears(tiny_llama()))
    matching = penalty(model, batch_size=4)
    assert matching.first_block == 1
    assert len(matching.entering) == len(PROMPTS)

    def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        weights = list(adapter_parameters(model).values())
        loss = matching.loss(1)
        return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    begun = loss_and_gradient()
    matching.entering = []
    assert begun[0] > 1e-3
    for kept, whole in zip(begun, loss_and_gradient(), strict=True):
        torch.testing.assert_close(kept, whole, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_holds_for_its_passes_too():
    """Less is kept for the same value and gradient."""
    plain, saving = (with_adapter(tiny_llama(layers=6)) for _ in range(2))
    save_memory(saving)
    kept, losses, gradients = [], [], []
    for model in (plain, saving):
        matching = penalty(model)
        kept.append(held(lambda matching=matching: losses.append(matching.loss(0))))
        weights = list(adapter_parameters(model).values())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(losses[-1], weights)]))
    assert kept[1] < 0.5 * kept[0]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 1e-3


def test_it_has_no_units():
    model = with_adapter(tiny_llama())
    scaled = ScorePenalty(model, PROMPTS, lambda h: 1000 * head(h), 2.0, 0)
    assert scaled.loss(0).item() == pytest.approx(penalty(model).loss(0).item(), rel=1e-4)


def test_an_untrained_adapter_pays_nothing():
    assert penalty(with_adapter(tiny_llama(), moved=0.0)).loss(0).item() < 1e-10


def test_its_gradient_pushes_the_drift_down():
    model = with_adapter(tiny_llama())
    weights = list(adapter_parameters(model).values())
    matching = penalty(model)
    optimizer = torch.optim.Adam(weights, lr=3e-3)
    before = head(prefix_states(tiny_llama(), PROMPTS))
    drifts = []
    for step in range(30):
        drifts.append((head(prefix_states(model, PROMPTS)) - before).abs().max().item())
        optimizer.zero_grad()
        matching.loss(step).backward()
        optimizer.step()
    assert drifts[0] > 0.1
    assert drifts[-1] < 0.5 * drifts[0]


def test_every_pass_covers_the_prompts_in_its_own_seeded_order():
    model = with_adapter(tiny_llama())
    matching = penalty(model, batch_size=4)
    passes = [[matching.rows(step) for step in range(3 * p, 3 * p + 3)] for p in range(2)]
    for batches in passes:
        assert [len(rows) for rows in batches] == [4, 4, 2]
        assert sorted(row for rows in batches for row in rows) == list(range(10))
    assert passes[0] != passes[1]
    assert penalty(model, batch_size=4).rows(4) == matching.rows(4)
    assert [penalty(model, batch_size=4, seed=1).rows(step) for step in range(3)] != passes[0]


def test_a_minibatch_has_the_loss_of_its_prompts():
    model = with_adapter(tiny_llama())
    matching = penalty(model, batch_size=4)
    whole = penalty(model)
    sizes = [len(matching.rows(step)) for step in range(3)]
    losses = [matching.loss(step).item() for step in range(3)]
    assert np.average(losses, weights=sizes) == pytest.approx(whole.loss(0).item(), rel=1e-4)


def test_dropout_of_a_training_model_is_off_and_comes_back():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), config).train()
    matching = penalty(model)
    assert matching.loss(0).item() == matching.loss(0).item() > 0
    assert model.training
    modes = {name: module.training for name, module in model.named_modules()}
    with dropout_off(model):
        assert not any(
            module.training for module in model.modules() if isinstance(module, torch.nn.Dropout)
        )
    assert modes == {name: module.training for name, module in model.named_modules()}


def test_a_head_that_ranks_nothing_is_refused():
    with pytest.raises(UserError, match="same score, so there is nothing to match"):
        ScorePenalty(with_adapter(tiny_llama()), PROMPTS, lambda h: 0 * head(h), 1.0, 0)
