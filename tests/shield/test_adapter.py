"""Which adapters the shield can hold, and the names of their layers in the base LM."""

import pytest
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import adapter_parameters
from shielded_recrl.shield.adapter import (
    active_adapter,
    last_block,
    lora_a,
    lora_b,
    lora_layers,
    require_plain_lora,
)
from tiny_world import tiny_llama, with_adapter


def adapted(base=None, **config):
    config = {"target_modules": ["q_proj", "down_proj"], "r": 2, "task_type": "CAUSAL_LM"} | config
    return get_peft_model(base or tiny_llama(), LoraConfig(**config))


def test_layers_have_the_names_of_the_base():
    model = with_adapter(tiny_llama())
    modules = dict(tiny_llama().named_modules())
    assert len(lora_layers(model)) == 2 * 7
    for name, weight in lora_a(model).items():
        assert weight.shape == (4, modules[name].in_features)
    for name, weight in lora_b(model).items():
        assert weight.shape == (modules[name].out_features, 4)
    found = {id(w) for w in (*lora_a(model).values(), *lora_b(model).values())}
    assert found == {id(w) for w in adapter_parameters(model).values()}


def test_layers_of_another_adapter_are_left_out():
    model = with_adapter(tiny_llama())
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert set(lora_layers(model, "other")) == {
        f"model.layers.{block}.self_attn.q_proj" for block in (0, 1)
    }
    assert active_adapter(model) == "default"
    require_plain_lora(model)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_last_block(layers):
    assert last_block(tiny_llama(layers=layers)) == f"model.layers.{layers - 1}."
    assert last_block(with_adapter(tiny_llama(layers=layers))) == f"model.layers.{layers - 1}."
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=16, n_head=2, vocab_size=50))
    assert last_block(gpt2) == f"transformer.h.{layers - 1}."


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"lora_dropout": 0.5},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False},
        {"rank_pattern": {"q_proj": 3}},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_plain_lora_is_accepted(config):
    require_plain_lora(adapted(**config))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "use_dora: DoRA rescales each whole weight"),
        ({"lora_bias": True}, "lora_bias: a trained bias moves every input"),
        ({"bias": "all"}, "bias='all': a trained bias"),
        ({"modules_to_save": ["norm"]}, "modules_to_save: whole modules are trained"),
        ({"trainable_token_indices": [0, 1]}, "token embeddings are trained"),
        (
            {"target_modules": [], "target_parameters": ["q_proj.weight"]},
            "target_parameters: bare parameters",
        ),
        ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication: the base LM gets other"),
        ({"alora_invocation_tokens": [5, 6]}, "activated LoRA leaves the prefix alone"),
        ({"init_lora_weights": "pissa"}, "'pissa': this initialisation changes the base weights"),
        ({"init_lora_weights": "pissa_niter_2"}, "changes the base weights"),
        ({"init_lora_weights": "olora"}, "changes the base weights"),
        ({"init_lora_weights": "mica"}, "changes the base weights or the LoRA layer"),
        (
            {"target_modules": ["embed_tokens"]},
            "embed_tokens is a Embedding over Embedding: only plain LoRA over a linear layer",
        ),
    ],
    ids=lambda x: str(x)[:30],
)
@pytest.mark.filterwarnings("ignore")
def test_more_than_plain_lora_is_refused_with_the_reason(config, reason):
    with pytest.raises(UserError, match=reason) as caught:
        require_plain_lora(adapted(**config))
    assert "\n" not in str(caught.value)


def test_pissa_does_change_the_base():
    """Why it is refused: with the adapter off, the LM is another one."""
    before = tiny_llama().model.layers[0].self_attn.q_proj.weight
    layer = lora_layers(adapted(init_lora_weights="pissa"))["model.layers.0.self_attn.q_proj"]
    assert (layer.get_base_layer().weight - before).abs().max() > 0.01


def test_another_linear_variant_is_refused_by_its_setting():
    from peft.tuners.lora.config import KasaConfig

    with pytest.raises(UserError, match="kasa_config: the update of this variant is not x -> B A"):
        require_plain_lora(adapted(kasa_config=KasaConfig()))


def test_unknown_module_types_are_refused_by_name():
    base = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50))
    model = adapted(base, target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(UserError, match=r"h\.0\.attn\.c_attn is a Linear over Conv1D"):
        require_plain_lora(model)


@pytest.mark.parametrize("what", ["model.norm.weight", "model.embed_tokens.weight"])
def test_other_trained_weights_are_refused_by_name(what):
    model = adapted()
    model.get_base_model().get_parameter(what).requires_grad_()
    with pytest.raises(UserError, match=rf"{what} is trained: only lora_A and lora_B"):
        require_plain_lora(model)


def test_a_merged_adapter_is_refused():
    model = adapted()
    model.merge_adapter()
    with pytest.raises(UserError, match="is merged: its update is in the base weights"):
        require_plain_lora(model)
    model.unmerge_adapter()
    require_plain_lora(model)


def test_two_active_adapters_are_refused():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UserError, match=r"2 adapters are active \(default, other\)"):
        require_plain_lora(model)


def test_other_methods_and_bare_models_are_refused():
    config = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="IA3"):
        require_plain_lora(get_peft_model(tiny_llama(), config))
    with pytest.raises(UserError, match="LlamaForCausalLM is not a PEFT model"):
        require_plain_lora(tiny_llama())


def test_a_frozen_adapter_is_accepted():
    model = adapted()
    for weight in adapter_parameters(model).values():
        weight.requires_grad_(False)
    require_plain_lora(model)
