"""What shield and PPO read off an LM: states that padding and idle adapters do not touch."""

import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base, load_tokenizer
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.lm import (
    adapter_parameters,
    causal_lm,
    hidden_size,
    load_adapter,
    positions,
    prefix_states,
    switch_off_dropout,
    trunk,
)
from tiny_world import prompts, save_model, tiny_llama, with_adapter

CPU = torch.device("cpu")
ROWS = prompts(9, 1, 14)


def test_prefix_states_equal_those_of_single_rows():
    model = with_adapter(tiny_llama())
    with torch.no_grad():
        alone = torch.cat(
            [trunk(model)(torch.tensor([row])).last_hidden_state[:, -1] for row in ROWS]
        )
    for batch_size in (1, 4, 64):
        got = prefix_states(model, ROWS, batch_size)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)


def test_states_are_taken_after_the_last_norm():
    model = tiny_llama()
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in ROWS])
    torch.testing.assert_close(model.lm_head(prefix_states(model, ROWS)), logits, atol=1e-4, rtol=0)


def test_an_adapter_that_is_off_leaves_every_bit():
    base = prefix_states(tiny_llama(), ROWS)
    model = with_adapter(tiny_llama())
    assert not torch.allclose(prefix_states(model, ROWS), base, atol=0.01)
    with model.disable_adapter():
        assert torch.equal(prefix_states(model, ROWS), base)


def test_an_untrained_adapter_leaves_every_bit():
    assert torch.equal(
        prefix_states(with_adapter(tiny_llama(), moved=0.0), ROWS),
        prefix_states(tiny_llama(), ROWS),
    )


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 1, 1]]


def test_only_lora_weights_are_trained(world):
    model = load_adapter(load_base(world.base, "fp32", CPU), world.adapter, trainable=True)
    weights = adapter_parameters(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == set(weights)
    assert list(weights) == sorted(weights)
    assert len(weights) == 2 * 7 * 2
    assert not model.training
    assert hidden_size(model) == 32
    frozen = load_adapter(load_base(world.base, "fp32", CPU), world.adapter)
    assert not any(weight.requires_grad for weight in frozen.parameters())


@pytest.mark.parametrize("shape", [{"width": 64}, {"layers": 1}])
def test_an_adapter_of_another_base_is_one_line(world, tmp_path, shape):
    """Of another width, or of fewer layers: PEFT alone would load what happens to fit."""
    tokenizer = load_tokenizer(world.base)
    folder = save_model(tiny_llama(len(tokenizer), **shape), tokenizer, tmp_path / "other")
    with pytest.raises(UserError, match="does not fit the base LM") as caught:
        load_adapter(load_base(folder, "fp32", CPU), world.adapter)
    assert str(world.adapter) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_adapter_is_one_line(world, tmp_path):
    import shutil

    folder = tmp_path / "adapter"
    shutil.copytree(world.adapter, folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError) as caught:
        load_adapter(load_base(world.base, "fp32", CPU), folder)
    assert "\n" not in str(caught.value)


def test_dropout_is_off_but_four_bit_layers_stay_in_training_mode():
    class Linear4bit(torch.nn.Linear):
        """Stands in by its module, which is all `switch_off_dropout` goes by."""

        __module__ = "bitsandbytes.nn.modules"

    model = torch.nn.Sequential(torch.nn.Dropout(0.5), Linear4bit(2, 2), torch.nn.Linear(2, 2))
    switch_off_dropout(model)
    assert [module.training for module in model] == [False, True, False]


def test_gradients_through_an_nf4_base_survive_a_forward_without_gradient(world, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    tokenizer = load_tokenizer(world.base)
    folder = save_model(tiny_llama(len(tokenizer), width=64), tokenizer, tmp_path / "base")
    save_adapter(with_adapter(tiny_llama(len(tokenizer), width=64)), tmp_path / "adapter")
    ids = torch.tensor(prompts(4, 12, 12, vocabulary=len(tokenizer)))

    def gradient(model) -> torch.Tensor:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return torch.cat([w.grad.float().flatten() for w in adapter_parameters(model).values()])

    model = load_adapter(load_base(folder, "nf4", CPU), tmp_path / "adapter", trainable=True)
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    assert all(layer.training for layer in layers)
    assert not model.training
    before = gradient(model)
    prefix_states(model, prompts(3, 4, 9, vocabulary=len(tokenizer)))
    after = gradient(model)
    assert before.norm() > 0
    assert torch.cosine_similarity(before, after, dim=0) > 0.9999
    # Right, too, and not only unchanged: that through the same weights, written out in fp32.
    exact = load_adapter(load_base(folder, "fp32", CPU), tmp_path / "adapter", trainable=True)
    plain = dict(causal_lm(exact).named_modules())
    with torch.no_grad():
        for name, layer in causal_lm(model).named_modules():
            if isinstance(layer, bnb.nn.Linear4bit):
                weight = bnb.functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
                plain[name].weight.copy_(weight)
    assert torch.cosine_similarity(gradient(exact), after, dim=0) > 0.95


def test_adapter_dropout_is_off_on_an_nf4_base(world, tmp_path):
    """PEFT's own layer over a 4-bit one has the same class name, and its dropout below it."""
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model

    folder = save_model(tiny_llama(width=64), load_tokenizer(world.base), tmp_path / "base")
    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(load_base(folder, "nf4", CPU), config)
    switch_off_dropout(model)
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert not any(module.training for module in dropouts)
